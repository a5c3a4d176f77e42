"""Counts of candidates by bin, from the encoded matrix, equal counts of the raw values."""

import itertools
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from tests.support.prometheus_samples import registered, sum_of
from training.candidates import SAMPLE, SIGNATURE
from training.generator import generate
from transformer.bundle.candidates import Rows
from transformer.bundle.encoder import Encoder
from transformer.bundle.format import Bundle, Vectorizer, load_bundle
from transformer.bundle.prediction import Prediction
from transformer.bundle.signature import Number
from transformer.monitoring.bins import OTHER, Bins
from transformer.monitoring.monitor import (
    BLOCK_SIZE,
    GRPC_INFER,
    MAX_REQUESTS,
    V1_EXPLAIN,
    V1_PREDICT,
    Monitor,
)

DURATIONS = 0.001, 0.002, 0.003


@pytest.fixture(scope="module")
def bundle(trained_bundle) -> Bundle:
    return load_bundle(trained_bundle)


def bin_of(bundle: Bundle, name: str, value: Any) -> str:
    """Return a raw value's bin, found without numpy."""
    assert bundle.distribution is not None
    if name not in bundle.distribution.numbers:
        return value if value in bundle.distribution.categories[name] else OTHER
    edges = bundle.distribution.numbers[name].edges
    for low, high in itertools.pairwise(edges):
        if value < high or high == edges[-1]:
            return f"{low:g} to {high:g}"
    raise AssertionError(value)


def some_candidates(bundle: Bundle, count: int) -> list[dict[str, Any]]:
    """Return candidates on all edges of all bins, and between them; some with an unknown category."""
    assert bundle.distribution is not None
    rng = random.Random(count)
    found = []
    for _ in range(count):
        candidate: dict[str, Any] = {}
        for field in SIGNATURE.fields:
            if isinstance(field, Number):
                edges = bundle.distribution.numbers[field.name].edges
                candidate[field.name] = rng.choice([*edges, rng.uniform(*field.range)])
            else:
                candidate[field.name] = rng.choice([*field.categories, "unknown"])
        found.append(candidate)
    return found


@pytest.mark.parametrize("count", [1, 7, 400])
def test_bins_of_encoded_candidates_are_those_of_their_raw_values(bundle, count):
    candidates = some_candidates(bundle, count)
    bins = Bins(bundle, bundle.signature.names)
    matrix = Encoder(bundle.vectorizer, bundle.signature, "ignore").encode(Rows(candidates, "instances"))
    expected = Counter((name, bin_of(bundle, name, row[name])) for row in candidates for name in row)
    counts = dict(zip(bins.labels, bins.count(matrix).tolist(), strict=True))
    assert {bin_: number for bin_, number in counts.items() if number} == expected


def test_every_training_candidate_is_in_one_bin_of_each_field(bundle):
    bins = Bins(bundle, bundle.signature.names)
    assert bundle.distribution is not None
    totals: Counter[str] = Counter()
    for (name, label), count in zip(bins.labels, bins.training, strict=True):
        totals[name] += count
        assert count == 0 or label != OTHER
    assert totals == dict.fromkeys(bundle.signature.names, bundle.distribution.rows)


def test_a_category_that_is_called_other_has_a_bin_of_its_own(bundle):
    (gender,) = (field for field in bundle.signature.fields if field.name == "gender")
    field = gender.model_copy(update={"categories": ("F", OTHER)})
    signature = bundle.signature.model_copy(update={"fields": (field,)})
    vectorizer = Vectorizer(feature_names=("gender=F", f"gender={OTHER}"), separator="=")
    version = bundle.model_copy(update={"signature": signature, "vectorizer": vectorizer})
    bins = Bins(version, version.signature.names)
    assert bins.labels == [("gender", "F"), ("gender", OTHER), ("gender", f"({OTHER})")]
    assert bins.count(np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])).tolist() == [0, 2, 1]


def test_without_a_distribution_only_categories_are_counted(bundle):
    version = bundle.model_copy(update={"distribution": None})
    counted = {name for name, _ in Bins(version, version.signature.names).labels}
    assert counted == set(bundle.distribution.categories)


def predicted(bundle: Bundle, candidates: list[dict[str, Any]], label: str) -> Prediction:
    matrix = Encoder(bundle.vectorizer, bundle.signature).encode(Rows(candidates, "instances"))
    scores = matrix[:, bundle.vectorizer.index["ssc_p"]] / 100
    return Prediction(label, bundle.version, matrix, scores, scores >= 0.5)


@pytest.mark.parametrize(
    "sizes", [[1, 2, 3], [BLOCK_SIZE - 1, 1, 5], [2 * BLOCK_SIZE + 7], [1] * (MAX_REQUESTS + 3)]
)
def test_a_monitor_counts_every_request_and_candidate_once(bundle, sizes):
    rows: list[dict[str, Any]] = [
        {**SAMPLE, **candidate} for candidate in generate(sum(sizes), seed=1).candidates
    ]
    version = bundle.model_copy(update={"version": f"sizes-{len(sizes)}-{sizes[0]}"})
    label = version.version
    monitor = Monitor("placement", version, ("gender",))
    assert sum_of(registered(), "transformer_candidate_values_total", version=label) == 0
    start = 0
    for number, size in enumerate(sizes):
        kind = (V1_PREDICT, GRPC_INFER)[number % 2]
        monitor.answered(kind, DURATIONS, predicted(version, rows[start : start + size], label))
        start += size
    monitor.flush()
    monitor.flush()
    found = registered()
    for field in SIGNATURE.fields:
        assert sum_of(found, "transformer_candidate_values_total", version=label, field=field.name) == start
    assert sum_of(found, "transformer_requests_total", version=label, status="200") == len(sizes)
    assert sum_of(found, "transformer_requests_total", version=label, protocol="v1") == (len(sizes) + 1) // 2
    accepted = [row for row in rows if row["ssc_p"] >= 50]
    assert sum_of(found, "transformer_decisions_total", version=label, decision="positive") == len(accepted)
    assert sum_of(found, "transformer_decisions_total", version=label) == start
    assert sum_of(found, "transformer_candidate_score_count", version=label) == start
    low = sum(row["ssc_p"] <= 60 for row in rows)
    assert sum_of(found, "transformer_candidate_score_bucket", version=label, le="0.6") == low
    for gender in ("F", "M"):
        chosen = {"version": label, "field": "gender", "group": gender}
        of_gender = [row["gender"] == gender for row in rows]
        assert sum_of(found, "transformer_group_decisions_total", **chosen) == sum(of_gender)
        assert sum_of(found, "transformer_group_decisions_total", **chosen, decision="positive") == sum(
            row["gender"] == gender for row in accepted
        )


def test_explanations_are_counted_as_requests_but_not_their_candidates(bundle):
    version = bundle.model_copy(update={"version": "explained"})
    monitor = Monitor("explained", version, ("gender",))
    monitor.answered(V1_EXPLAIN, DURATIONS, predicted(version, [SAMPLE], "explained"), explained=True)
    monitor.answered(V1_PREDICT, DURATIONS, predicted(version, [SAMPLE, SAMPLE], "explained"))
    monitor.flush()
    found = registered()
    for verb in ("predict", "explain"):
        assert sum_of(found, "transformer_requests_total", version="explained", verb=verb, status="200") == 1
        assert sum_of(found, f"request_{verb}_seconds_count", model_name="explained") == 1
    assert sum_of(found, "request_preprocess_seconds_count", model_name="explained") == 2
    assert sum_of(found, "transformer_decisions_total", version="explained") == 2
    assert sum_of(found, "transformer_candidate_score_count", version="explained") == 2
