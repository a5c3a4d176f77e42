"""The gate before a rollout: reasons why a version must not serve."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pipelines.step import PipelineError
from pipelines.summary import Comparison, Summary
from placement.drift import (
    IMPACT_LIMIT,
    MIN_CANDIDATES,
    MIN_GROUP,
    PSI_LIMIT,
    GroupRate,
    impacts,
)
from training.metric_names import METRICS

#: Metrics of which less is better; of all others, more is.
LESS_IS_BETTER = frozenset({"brier", "log_loss", "mae", "rmse"})


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of the gate.

    Attributes
    ----------
    max_worse
        How much worse than the version that serves a metric may be; below 0, how much better it must be.
        Metrics that a kind of question does not have are passed over.
    min_comparable
        Minimum share of the held-out candidates that the version that serves accepts. With 0, a version that
        accepts none is not compared.
    max_psi
        Maximum stability index of a field, from `MIN_CANDIDATES` candidates on, as in the alert on drift.
    min_impact
        Minimum selection rate of a group divided by the highest one, for groups of at least `MIN_GROUP`
        candidates, as in the alert on impact.
    max_accuracy_gap
        Maximum difference between the accuracies of such groups of one field.

    Raises
    ------
    PipelineError
        If a metric is unknown, or a bound is no finite number or out of its range.
    """

    max_worse: Mapping[str, float] = field(
        default_factory=lambda: MappingProxyType(
            {"accuracy": 0.02, "roc_auc": 0.02, "brier": 0.01, "macro_f1": 0.02, "r2": 0.02}
        )
    )
    min_comparable: float = 0.5
    max_psi: float = PSI_LIMIT
    min_impact: float = IMPACT_LIMIT
    max_accuracy_gap: float = 0.1

    def __post_init__(self) -> None:
        for name, bound in self.max_worse.items():
            if name not in METRICS:
                raise PipelineError(
                    f"max_worse: {name!r} is no metric, expected some of {', '.join(METRICS)}"
                )
            _check_number(f"max_worse: {name}", bound)
        _check_number("min_comparable", self.min_comparable, 0, 1)
        _check_number("max_psi", self.max_psi, 0)
        _check_number("min_impact", self.min_impact, 0, 1)
        _check_number("max_accuracy_gap", self.max_accuracy_gap, 0, 1)


def _check_number(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and least <= value <= most):  # type: ignore[arg-type,operator]
        limits = (
            f", {word} {limit}"
            for word, limit in (("minimum", least), ("maximum", most))
            if math.isfinite(limit)
        )
        raise PipelineError(f"{name}: must be a finite number{''.join(limits)}, got {value!r}")


#: The bounds of a run that sets no others.
DEFAULT = Bounds()


def reasons(summary: Summary, bounds: Bounds = DEFAULT) -> list[str]:
    """Return why a version must not serve, one line for each bound that it breaks; empty if it may."""
    found: list[str] = []
    if summary.comparison is not None:
        found += _worse(summary, summary.comparison, bounds)
        found += _drifted(summary.comparison, bounds)
    return [*found, *_unfair(summary, bounds)]


def _worse(summary: Summary, comparison: Comparison, bounds: Bounds) -> Iterator[str]:
    serving, rows = comparison.version, comparison.rows
    comparable = rows / summary.rows
    if not comparable >= bounds.min_comparable:
        yield (
            f"{serving} accepts {rows} of {summary.rows} held-out rows, {comparable:.0%}, "
            f"min_comparable {bounds.min_comparable:.0%}"
        )
    elif rows and not bounds.max_worse.keys() & comparison.metrics.keys():
        known = ", ".join(comparison.metrics) or "none, because held-out rows of a class are missing"
        yield f"no metric in max_worse ({', '.join(bounds.max_worse)}) can be compared; there are: {known}"
    for name, limit in bounds.max_worse.items():
        if name in comparison.metrics:
            new, old = comparison.metrics[name], comparison.serving_metrics[name]
            worse = new - old if name in LESS_IS_BETTER else old - new
            # Also true for NaN.
            if not worse <= limit:
                yield (
                    f"{name} is {new:.4f} on {rows} held-out rows, and {old:.4f} for {serving}: "
                    f"{worse:.4f} worse, max_worse {limit:g}"
                )


def _drifted(comparison: Comparison, bounds: Bounds) -> Iterator[str]:
    if comparison.psi_rows >= MIN_CANDIDATES:
        for name, psi in comparison.psi.items():
            if not psi <= bounds.max_psi:
                yield (
                    f"{name} has drifted from the data of {comparison.version}: its stability index is "
                    f"{psi:.3f}, max_psi {bounds.max_psi:g}"
                )


def _unfair(summary: Summary, bounds: Bounds) -> Iterator[str]:
    large = [one for one in summary.groups if one.rows >= MIN_GROUP]
    rates = [
        GroupRate(one.field, one.group, one.rows, one.selection_rate)
        for one in large
        if one.selection_rate is not None
    ]
    for impact in impacts(rates):
        if not impact.ratio >= bounds.min_impact:
            listed = (f"{one.group} {one.selection_rate:.3f}" for one in rates if one.field == impact.field)
            yield (
                f"selection rates by {impact.field} are {', '.join(listed)}: the lowest is "
                f"{impact.ratio:.2f} of the highest, min_impact {bounds.min_impact:g}"
            )
    for name in dict.fromkeys(one.field for one in large):
        of_field = {
            one.group: one.accuracy for one in large if one.field == name and one.accuracy is not None
        }
        gap = max(of_field.values(), default=0.0) - min(of_field.values(), default=0.0)
        if not gap <= bounds.max_accuracy_gap:
            listed = (f"{group} {accuracy:.3f}" for group, accuracy in of_field.items())
            yield (
                f"accuracies by {name} are {', '.join(listed)}: they differ by {gap:.3f}, "
                f"max_accuracy_gap {bounds.max_accuracy_gap:g}"
            )
