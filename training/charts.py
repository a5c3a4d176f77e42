"""Charts of the report; each function draws one as inline SVG."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from training.data import Dataset
from training.evaluation import Evaluation, Group
from training.selection import Floats, Trial
from training.svg import ACCENT, INK, LINE, MUTED, NEGATIVE, POSITIVE, figure, inline
from transformer.bundle.signature import Number, RawField

#: Size of most charts, in inches.
WIDTH, HEIGHT = 4.9, 3.3
#: Number of bars in the histogram of probabilities.
BINS = 20
#: Maximum distinct values of a number that is drawn as bars, and categories of a field that are drawn.
MAX_DISCRETE, MAX_CATEGORIES = 8, 12
#: Maximum characters of a category's name in a chart.
MAX_NAME = 22


def probabilities(evaluation: Evaluation, positive: str, negative: str) -> str:
    """Draw the histogram of the probabilities, with the negative class below the axis."""
    drawn = figure(WIDTH, HEIGHT)
    axes = drawn.add_subplot()
    edges = np.linspace(0, 1, BINS + 1)
    for is_positive, colour, label in ((True, POSITIVE, positive), (False, NEGATIVE, negative)):
        counts, _ = np.histogram(evaluation.probabilities[evaluation.positive == is_positive], edges)
        heights = counts if is_positive else -counts
        axes.bar(edges[:-1] + 0.5 / BINS, heights, width=0.86 / BINS, color=colour, label=label)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.axvline(evaluation.threshold, color=INK, linewidth=1, linestyle=(0, (3, 3)))
    axes.set(xlabel=f"probability of {positive}", ylabel="count", xlim=(0, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.0f}")
    axes.grid(axis="x", visible=False)
    _legend_above(axes)
    confident = np.mean(np.abs(evaluation.probabilities - 0.5) >= 0.4)
    return inline(
        drawn,
        "probabilities",
        f"Histogram of probabilities by class; {confident:.0%} are below 10% or above 90%",
    )


def calibration(evaluation: Evaluation, positive: str) -> str:
    """Draw the share of positive candidates by probability, with 95% intervals."""
    drawn = figure(WIDTH, HEIGHT)
    axes = drawn.add_subplot()
    means, parts, counts = evaluation.calibration
    low, high = wilson_interval(parts, counts)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    axes.vlines(means, low, high, color=ACCENT, alpha=0.45, linewidth=3)
    axes.plot(means, parts, color=ACCENT, linewidth=1, alpha=0.5)
    axes.scatter(means, parts, s=18 + 160 * counts / counts.max(), color=ACCENT, zorder=3)
    axes.set(
        xlabel=f"probability of {positive}",
        ylabel=f"share that is {positive}",
        xlim=(-0.04, 1.04),
        ylim=(-0.04, 1.04),
    )
    _percent(axes)
    return inline(
        drawn,
        "calibration",
        f"Calibration: on the diagonal, a probability of 70% is {positive} in 70 of 100 cases",
    )


def roc(evaluation: Evaluation) -> str:
    """Draw the ROC curve and the point of the threshold."""
    drawn = figure(WIDTH, HEIGHT)
    axes = drawn.add_subplot()
    false_rates, true_rates = evaluation.roc
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    axes.fill_between(false_rates, true_rates, color=ACCENT, alpha=0.12, linewidth=0)
    axes.plot(false_rates, true_rates, color=ACCENT)
    negatives, positives = evaluation.confusion
    at = negatives[1] / negatives.sum(), positives[1] / positives.sum()
    axes.scatter(*at, s=60, color=ACCENT, zorder=3)
    axes.annotate(
        f"at {evaluation.threshold:.0%}: finds {at[1]:.1%},\n{at[0]:.1%} false positives",
        at, (0.97, 0.2), ha="right", arrowprops={"arrowstyle": "-", "color": MUTED}, color=INK,
    )  # fmt: skip
    area = evaluation.metrics["roc_auc"]
    axes.text(0.97, 0.08, f"area {area:.3f}", ha="right", fontsize=15, color=ACCENT)
    axes.set(
        xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.02, 1.02), ylim=(-0.02, 1.04)
    )
    _percent(axes)
    return inline(drawn, "roc", f"ROC curve with an area of {area:.3f}")


def threshold(evaluation: Evaluation) -> str:
    """Draw precision and recall by threshold."""
    drawn = figure(WIDTH, HEIGHT)
    axes = drawn.add_subplot()
    thresholds = np.linspace(0.01, 0.99, 99)
    predicted = evaluation.probabilities[None, :] >= thresholds[:, None]
    found = (predicted & evaluation.positive).sum(axis=1)
    recall, total = found / evaluation.positive.sum(), predicted.sum(axis=1)
    precision = np.where(total > 0, found / np.maximum(total, 1), np.nan)
    for values, colour, label, style in (
        (precision, ACCENT, "precision", "-"),
        (recall, INK, "recall", (0, (5, 1.5))),
    ):
        axes.plot(thresholds, values, color=colour, label=label, linestyle=style)
    axes.axvline(evaluation.threshold, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    axes.set(xlabel="threshold", xlim=(0, 1))
    _percent(axes)
    _legend_above(axes)
    return inline(drawn, "threshold", "Precision rises and recall falls with the threshold")


def importance(evaluation: Evaluation) -> str:
    """Draw the loss of accuracy when a field's values are shuffled."""
    ranked = evaluation.importances[::-1]
    drawn = figure(WIDTH, max(1.6, 0.36 * len(ranked) + 0.5))
    axes = drawn.add_subplot()
    names = [item.field for item in ranked]
    values = [max(item.mean, 0) for item in ranked]
    axes.barh(names, values, color=ACCENT, height=0.56)
    axes.errorbar(values, names, xerr=[item.error for item in ranked], fmt="none", ecolor=INK, elinewidth=1)
    axes.set(xlabel="loss of accuracy when the field is shuffled", xlim=(0, None))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    _names_at_left(axes)
    best = evaluation.importances[0]
    return inline(drawn, "importance", f"Importance of each field; {best.field} first, {best.mean:.1%}")


def choice(trials: Sequence[Trial], chosen: Trial) -> str:
    """Draw the Brier score of each estimator with its standard error."""
    ranked = list(trials)[::-1]
    drawn = figure(WIDTH, max(1.6, 0.29 * len(ranked) + 0.5))
    axes = drawn.add_subplot()
    best = min(trials, key=lambda trial: trial.brier)
    axes.axvspan(
        best.brier - best.brier_error, best.brier + best.brier_error, color=ACCENT, alpha=0.1, linewidth=0
    )
    for trial in ranked:
        colour = ACCENT if trial is chosen else MUTED
        name = trial.estimator.name
        axes.errorbar(
            trial.brier, name, xerr=trial.brier_error, fmt="o", color=colour, elinewidth=2, markersize=7
        )
    axes.set(xlabel="Brier score, ± one standard error (lower is better)", ylim=(-0.6, len(ranked) - 0.4))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    _names_at_left(axes)
    axes.get_yticklabels()[ranked.index(chosen)].set_color(ACCENT)
    axes.get_yticklabels()[ranked.index(chosen)].set_fontweight("bold")
    return inline(
        drawn, "choice", f"Brier scores of {len(trials)} estimators; chosen: {chosen.estimator.name}"
    )


def groups(rows: Sequence[Group], overall: float) -> str:
    """Draw the accuracy for each category, with 95% intervals."""
    ranked = list(rows)[::-1]
    drawn = figure(WIDTH, max(1.6, 0.27 * len(ranked) + 0.5))
    axes = drawn.add_subplot()
    positions = np.arange(len(ranked))
    accuracies = np.array([group.accuracy for group in ranked])
    low, high = wilson_interval(accuracies, np.array([group.rows for group in ranked]))
    axes.axvline(overall, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    axes.hlines(positions, low, high, color=ACCENT, alpha=0.45, linewidth=3)
    axes.scatter(accuracies, positions, color=ACCENT, s=34, zorder=3)
    axes.set_yticks(positions, [f"{group.field} {_short(group.category)}" for group in ranked])
    axes.set(xlabel="accuracy, with 95% interval", ylim=(-0.6, len(ranked) - 0.4), xlim=(None, 1.004))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    _names_at_left(axes)
    worst = min(rows, key=lambda group: group.accuracy)
    return inline(
        drawn,
        "groups",
        f"Accuracy by category; lowest for {worst.field} {worst.category}: {worst.accuracy:.1%}",
    )


def field(raw: RawField, dataset: Dataset) -> str:
    """Draw the distribution of one raw field in each class."""
    values = np.array([candidate[raw.name] for candidate in dataset.candidates])
    is_positive = np.array(dataset.labels) == dataset.task.positive_class
    drawn = figure(2.6, 1.55)
    if isinstance(raw, Number) and not _is_discrete(values):
        _histogram(drawn.add_subplot(), values, is_positive)
    elif isinstance(raw, Number):
        _shares(drawn.add_subplot(), np.unique(values), values, is_positive)
    else:
        categories = _most_frequent(raw.categories, values)
        drawn.set_figheight(max(1.55, 0.2 * len(categories) + 0.3))
        _category_shares(drawn.add_subplot(), categories, len(raw.categories), values, is_positive)
    (axes,) = drawn.axes
    axes.grid(visible=False)
    return inline(drawn, f"field-{raw.name}", f"Distribution of {raw.name} in each class")


def _is_discrete(values: npt.NDArray[Any]) -> bool:
    """Return True for a number that has few values, all of them whole, such as 0 and 1."""
    distinct = np.unique(values)
    return len(distinct) <= MAX_DISCRETE and bool(np.all(distinct == np.round(distinct)))


def _histogram(axes: Axes, values: npt.NDArray[Any], is_positive: npt.NDArray[np.bool_]) -> None:
    edges = np.histogram_bin_edges(values, 18)
    for part, colour in ((is_positive, POSITIVE), (~is_positive, NEGATIVE)):
        heights, _ = np.histogram(values[part], edges, density=True)
        axes.stairs(heights, edges, fill=True, color=colour, alpha=0.4)
        axes.stairs(heights, edges, color=colour, linewidth=1.3)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)


def _shares(
    axes: Axes,
    distinct: npt.NDArray[Any],
    values: npt.NDArray[Any],
    is_positive: npt.NDArray[np.bool_],
) -> None:
    """Draw the share of each value of a discrete number, at equal distances."""
    positions = np.arange(len(distinct))
    for part, colour, shift in ((is_positive, POSITIVE, -0.2), (~is_positive, NEGATIVE, 0.2)):
        shares = [np.mean(values[part] == value) for value in distinct]
        axes.bar(positions + shift, shares, width=0.38, color=colour, alpha=0.75)
    axes.set_xticks(positions, [f"{value:g}" for value in distinct])
    axes.tick_params(axis="x", length=0)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)


def _category_shares(
    axes: Axes,
    categories: Sequence[str],
    count: int,
    values: npt.NDArray[Any],
    is_positive: npt.NDArray[np.bool_],
) -> None:
    """Draw the share of each category, one below the other, so that no names overlap."""
    positions = np.arange(len(categories))
    for part, colour, shift in ((is_positive, POSITIVE, -0.2), (~is_positive, NEGATIVE, 0.2)):
        shares = [np.mean(values[part] == category) for category in categories]
        axes.barh(positions + shift, shares, height=0.38, color=colour, alpha=0.75)
    axes.set_yticks(positions, [_short(category) for category in categories])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_xticks([])
    if len(categories) < count:
        axes.set_xlabel(f"and {count - len(categories)} more")
    axes.spines["bottom"].set_visible(False)


def _most_frequent(categories: Sequence[str], values: npt.NDArray[Any]) -> list[str]:
    """Return the categories in their order, or of very many only the most frequent."""
    if len(categories) <= MAX_CATEGORIES:
        return list(categories)
    found = Counter(values.tolist())
    return [category for category, _ in found.most_common(MAX_CATEGORIES)]


def wilson_interval(parts: Floats, counts: npt.NDArray[np.intp]) -> tuple[Floats, Floats]:
    """95% Wilson score interval of a proportion; its bounds are always between 0 and 1."""
    z, n = 1.96, np.asarray(counts, dtype=float)
    middle = (parts + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(parts * (1 - parts) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return middle - half, middle + half


def _percent(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"


def _legend_above(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)


def _names_at_left(axes: Axes) -> None:
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_color(LINE)
