"""Metrics have the names that Prometheus asks for, and histograms may be filled in batches."""

import re

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.samples import Sample

from tests.support.paths import ROOT
from tests.support.prometheus_samples import registered
from transformer import metrics
from transformer.metrics import (
    DENIED_REASONS,
    FEW,
    LIMITS,
    MANY,
    RETRY_REASONS,
    HistogramBatch,
    observe_all,
    start_at_zero,
)

OURS = {name: value for name, value in vars(metrics).items() if isinstance(value, MetricWrapperBase)}


def histogram() -> Histogram:
    return Histogram("a_seconds", "A histogram", buckets=(0.1, 0.5, 1), registry=CollectorRegistry())


def samples(one: Histogram) -> list[Sample]:
    return [sample for metric in one.collect() for sample in metric.samples]


@pytest.mark.parametrize("count", [0, 1, FEW - 1, FEW, 3 * MANY - 3, 3 * MANY])
def test_values_observed_together_equal_values_observed_one_by_one(count):
    values = np.random.default_rng(count).choice([0.0, 0.1, 0.1000001, 0.3, 0.5, 1.0, 1.5, 99.0], count)
    together, all_at_once, one_by_one = histogram(), histogram(), histogram()
    batch = HistogramBatch(together)
    for part in np.array_split(values, 3):
        batch.observe(part)
    batch.flush()
    batch.flush()
    observe_all(all_at_once, values.tolist())
    for value in values:
        one_by_one.observe(value)
    for filled in (together, all_at_once):
        for sample, expected in zip(samples(filled), samples(one_by_one), strict=True):
            assert (sample.name, sample.labels) == (expected.name, expected.labels)
            assert sample.value == pytest.approx(expected.value, abs=1e-9)


@pytest.mark.parametrize("name", OURS)
def test_a_metric_has_labels_so_that_processes_can_share_it(name):
    assert OURS[name]._labelnames, "its value would be made before the processes share their metrics"


@pytest.mark.parametrize("name", OURS)
def test_a_metric_is_named_by_prometheus_conventions(name):
    found = OURS[name]
    assert re.fullmatch("transformer_[a-z]+(_[a-z]+)*", found._name)
    assert found._documentation
    assert not found._name.endswith(("_total", "_count", "_sum", "_bucket"))


def literals(pattern: str) -> set[str]:
    """Return the strings that a pattern finds in the transformer's source."""
    sources = "".join(path.read_text() for path in (ROOT / "transformer").rglob("*.py"))
    return set(re.findall(pattern, sources))


def test_series_that_start_at_zero_are_all_that_the_source_names():
    assert literals(r'limit="([^"]+)"') == set(LIMITS)
    assert literals(r'_spend\("([^"]+)"') == set(DENIED_REASONS)
    resent = literals(r'resend\([^()]+, "([^"]+)"\)') | literals(r'RETRIES\.labels\("([^"]+)"')
    assert resent == set(RETRY_REASONS)
    outcomes = literals(r'VERIFICATIONS\.labels\("([^"]+)"')
    start_at_zero()
    started = {one.labels["outcome"] for one in registered() if one.name == "transformer_verifications_total"}
    assert outcomes | {"refused"} == started
