"""Drift and selection rates from the metrics of all transformers, computed as the recording rules do."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

#: Limits of the alerts, and the number of candidates from which a figure counts.
PSI_LIMIT = 0.25
SCORE_LIMIT = 0.2
IMPACT_LIMIT = 0.8
MIN_CANDIDATES = 500
MIN_GROUP = 100
#: A share below this counts as this, because an empty bin has no logarithm.
MIN_SHARE = 0.0001


@dataclass(frozen=True, slots=True)
class FieldDrift:
    """Drift of one field.

    Attributes
    ----------
    psi
        Population stability index.
    expected
        Mean of the index for as many candidates without drift: (bins - 1) (1/n + 1/m).
    alert
        True if the alert CandidatesDrifted would fire.
    """

    field: str
    psi: float
    expected: float
    alert: bool


@dataclass(frozen=True, slots=True)
class GroupRate:
    """Share of positive decisions among the candidates of one group."""

    field: str
    group: str
    candidates: int
    selection_rate: float


@dataclass(frozen=True, slots=True)
class Impact:
    """Lowest selection rate of a field's groups divided by the highest, without groups below `MIN_GROUP`."""

    field: str
    ratio: float
    alert: bool


@dataclass(frozen=True, slots=True)
class VersionDrift:
    """Figures of the candidates that one version has answered since its transformers started.

    Attributes
    ----------
    training_candidates
        None if the bundle does not have the version's distribution; `fields` is then empty.
    selection_rate
        Share of positive decisions; None for another question than of yes or no.
    class_shares
        Share of each class among the decisions; empty for yes or no, and for numbers.
    score_distance
        Largest difference of the shares of candidates with at most some score; None without a distribution.
    """

    version: str
    candidates: int
    training_candidates: int | None
    selection_rate: float | None
    class_shares: Mapping[str, float]
    score_distance: float | None
    score_alert: bool
    fields: tuple[FieldDrift, ...]
    groups: tuple[GroupRate, ...]
    impacts: tuple[Impact, ...]


def read_drift(texts: Iterable[str]) -> list[VersionDrift]:
    """Compute the figures of each version that has answered candidates.

    Parameters
    ----------
    texts
        Metrics of each transformer in Prometheus' text format.

    Raises
    ------
    ValueError
        If a text is not in that format.
    """
    counters = _Totals(texts)
    versions = [
        name for name, count in counters.by("transformer_decisions_total", "version").items() if count
    ]
    return [_version(counters.of_version(name), name) for name in sorted(versions)]


def stability_index(shares: Iterable[tuple[float, float]]) -> float:
    """Return the population stability index of each bin's shares, now and in training."""
    floored = ((max(now, MIN_SHARE), max(before, MIN_SHARE)) for now, before in shares)
    return sum((now - before) * math.log(now / before) for now, before in floored)


def impacts(groups: Iterable[GroupRate]) -> Iterator[Impact]:
    """Yield the impact of each field with positive decisions."""
    rates: dict[str, list[float]] = defaultdict(list)
    for one in groups:
        if one.candidates >= MIN_GROUP:
            rates[one.field].append(one.selection_rate)
    for field, some in rates.items():
        if max(some):
            ratio = min(some) / max(some)
            yield Impact(field, ratio, ratio < IMPACT_LIMIT)


class _Totals:
    """Samples of all transformers: counters added up, gauges (the same everywhere) once."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
        for text in texts:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name.startswith("transformer_"):
                        self._add(sample, is_gauge=family.type == "gauge")

    def _add(self, sample: Sample, *, is_gauge: bool) -> None:
        key = sample.name, tuple(sorted(sample.labels.items()))
        self.samples[key] = (
            max(self.samples[key], sample.value) if is_gauge else self.samples[key] + sample.value
        )

    def of_version(self, version: str) -> "_Totals":
        """Return the samples of one version."""
        found = _Totals()
        found.samples.update(
            {key: value for key, value in self.samples.items() if ("version", version) in key[1]}
        )
        return found

    def by(self, name: str, *labels: str, **chosen: str) -> dict[str, float]:
        """Add up the samples of a metric that have the chosen labels, by the values of some labels."""
        sums: dict[str, float] = defaultdict(float)
        for (sample, pairs), value in self.samples.items():
            values = dict(pairs)
            if sample == name and chosen.items() <= values.items():
                sums["\0".join(values[label] for label in labels)] += value
        return dict(sums)


def _version(counts: _Totals, version: str) -> VersionDrift:
    decisions = counts.by("transformer_decisions_total", "decision")
    total = sum(decisions.values())
    training = counts.by("transformer_training_candidates", "version").get(version)
    shares = counts.by("transformer_training_share", "field", "bin")
    distance = _score_distance(counts)
    is_binary = decisions.keys() == {"positive", "negative"}
    groups = tuple(_groups(counts)) if is_binary else ()
    return VersionDrift(
        version=version,
        candidates=round(total),
        training_candidates=None if training is None else round(training),
        selection_rate=decisions.get("positive", 0) / total if is_binary else None,
        class_shares={} if is_binary else _class_shares(decisions, total),
        score_distance=distance,
        score_alert=distance is not None and distance > SCORE_LIMIT and total >= MIN_CANDIDATES,
        fields=tuple(_fields(counts, shares, total, training)) if training else (),
        groups=groups,
        impacts=tuple(impacts(groups)),
    )


def _class_shares(decisions: Mapping[str, float], total: float) -> dict[str, float]:
    # A regression counts its answers as one decision.
    return {name: count / total for name, count in decisions.items()} if len(decisions) > 1 else {}


def _fields(
    counts: _Totals, shares: Mapping[str, float], total: float, training: float
) -> Iterable[FieldDrift]:
    values = counts.by("transformer_candidate_values_total", "field", "bin")
    of_fields: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for key, share in shares.items():
        of_fields[key.partition("\0")[0]].append((values.get(key, 0) / total, share))
    for field, pairs in of_fields.items():
        used = sum(1 for _, before in pairs if before)
        psi = stability_index(pairs)
        alert = psi > PSI_LIMIT and total >= MIN_CANDIDATES
        yield FieldDrift(field, psi, (used - 1) * (1 / total + 1 / training), alert)


def _score_distance(counts: _Totals) -> float | None:
    training = counts.by("transformer_training_score_share", "score")
    scores = counts.by("transformer_candidate_score_bucket", "le")
    if not training or not scores.get("+Inf"):
        return None
    return max(abs(scores[score] / scores["+Inf"] - share) for score, share in training.items())


def _groups(counts: _Totals) -> Iterable[GroupRate]:
    name = "transformer_group_decisions_total"
    positive = counts.by(name, "field", "group", decision="positive")
    for key, total in counts.by(name, "field", "group").items():
        if total:
            field, _, group = key.partition("\0")
            yield GroupRate(field, group, round(total), positive.get(key, 0) / total)
