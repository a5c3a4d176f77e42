"""Charts of the report; each function draws one as inline SVG."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from training.cross_validation import Floats, Trial, loss_name
from training.data import Dataset
from training.encoding import categories_of, has_category
from training.evaluation import Evaluation, Group
from training.reports.svg import ACCENT, INK, LINE, MUTED, NEGATIVE, POSITIVE, figure, inline
from transformer.bundle.signature import Number, RawField

#: Size of most charts, in inches.
WIDTH, HEIGHT = 4.9, 3.3
#: Maximum candidates that are drawn as dots.
MAX_DOTS = 2000
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
    edges, shown = np.linspace(0, 1, BINS + 1), evaluation.positive_probabilities
    for is_positive, colour, label in ((True, POSITIVE, positive), (False, NEGATIVE, negative)):
        counts, _ = np.histogram(shown[evaluation.truth == is_positive], edges)
        heights = counts if is_positive else -counts
        axes.bar(edges[:-1] + 0.5 / BINS, heights, width=0.86 / BINS, color=colour, label=label)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.axvline(evaluation.threshold, color=INK, linewidth=1, linestyle=(0, (3, 3)))
    axes.set(xlabel=f"probability of {positive}", ylabel="count", xlim=(0, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.0f}")
    axes.grid(axis="x", visible=False)
    _legend_above(axes)
    confident = np.mean(np.abs(shown - 0.5) >= 0.4)
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
    predicted = evaluation.positive_probabilities[None, :] >= thresholds[:, None]
    found = (predicted & evaluation.truth).sum(axis=1)
    recall, total = found / evaluation.truth.sum(), predicted.sum(axis=1)
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
    """Draw the loss of accuracy, or the rise of the error, when a field's values are shuffled."""
    ranked = evaluation.importances[::-1]
    drawn = figure(WIDTH, max(1.6, 0.36 * len(ranked) + 0.5))
    axes = drawn.add_subplot()
    names = [item.field for item in ranked]
    values = [max(item.mean, 0) for item in ranked]
    axes.barh(names, values, color=ACCENT, height=0.56)
    axes.errorbar(values, names, xerr=[item.error for item in ranked], fmt="none", ecolor=INK, elinewidth=1)
    is_number = evaluation.target.kind == "regression"
    effect = "rise of the mean absolute error" if is_number else "loss of accuracy"
    axes.set(xlabel=f"{effect} when the field is shuffled", xlim=(0, None))
    if not is_number:
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    _names_at_left(axes)
    best = evaluation.importances[0]
    amount = f"{best.mean:.4g}" if is_number else f"{best.mean:.1%}"
    return inline(drawn, "importance", f"Importance of each field; {best.field} first, {amount}")


def predicted(evaluation: Evaluation) -> str:
    """Draw the predicted number of each candidate beside the true one."""
    drawn = figure(WIDTH, HEIGHT)
    axes = drawn.add_subplot()
    shown = np.random.default_rng(0).permutation(len(evaluation.truth))[:MAX_DOTS]
    ends = [evaluation.truth.min(), evaluation.truth.max()]
    axes.plot(ends, ends, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    axes.scatter(evaluation.truth[shown], evaluation.values[shown], s=9, color=ACCENT, alpha=0.4, linewidth=0)
    axes.set(xlabel="true number", ylabel="predicted number")
    return inline(drawn, "predicted", f"Predicted and true numbers; R² is {evaluation.metrics['r2']:.3f}")


def errors(evaluation: Evaluation) -> str:
    """Draw the histogram of the differences between predicted and true numbers."""
    drawn = figure(WIDTH, HEIGHT)
    axes = drawn.add_subplot()
    axes.hist(evaluation.values - evaluation.truth, bins=2 * BINS, color=ACCENT)
    axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    axes.set(xlabel="predicted minus true number", ylabel="count")
    return inline(drawn, "errors", f"Errors; {evaluation.metrics['mae']:.4g} in the mean")


def choice(trials: Sequence[Trial], chosen: Trial) -> str:
    """Draw the mean loss of each estimator with its standard error; of tuned ones, the best of each name."""
    ranked = _best_of_each(trials)[::-1]
    drawn = figure(WIDTH, max(1.6, 0.29 * len(ranked) + 0.5))
    axes = drawn.add_subplot()
    best = min(trials, key=lambda trial: trial.loss)
    name = loss_name(chosen.target)
    axes.axvspan(
        best.loss - best.loss_error, best.loss + best.loss_error, color=ACCENT, alpha=0.1, linewidth=0
    )
    for trial in ranked:
        colour = ACCENT if trial is chosen else MUTED
        axes.errorbar(
            trial.loss,
            _name(trial),
            xerr=trial.loss_error,
            fmt="o",
            color=colour,
            elinewidth=2,
            markersize=7,
        )
    axes.set(xlabel=f"{name}, ± one standard error (lower is better)", ylim=(-0.6, len(ranked) - 0.4))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    _names_at_left(axes)
    axes.get_yticklabels()[ranked.index(chosen)].set_color(ACCENT)
    axes.get_yticklabels()[ranked.index(chosen)].set_fontweight("bold")
    return inline(drawn, "choice", f"{name} of {len(ranked)} estimators; chosen: {chosen.estimator}")


def _best_of_each(trials: Sequence[Trial]) -> list[Trial]:
    best: dict[str, Trial] = {}
    for trial in trials:
        name = _name(trial)
        if name not in best or trial.loss < best[name].loss:
            best[name] = trial
    return list(best.values())


def _name(trial: Trial) -> str:
    return f"{trial.estimator.name}, tuned" if trial.estimator.parameters else trial.estimator.name


def search(tuned: Sequence[Trial], chosen: Trial) -> str:
    """Draw the loss of each tuned trial in the order of the search, and the lowest loss until then."""
    drawn = figure(WIDTH, HEIGHT)
    axes = drawn.add_subplot()
    numbers, losses = np.arange(1, len(tuned) + 1), np.array([trial.loss for trial in tuned])
    axes.scatter(numbers, losses, s=16, color=MUTED, linewidths=0, clip_on=True)
    axes.plot(numbers, np.minimum.accumulate(losses), color=INK, linewidth=1, drawstyle="steps-post")
    is_chosen = np.array([trial is chosen for trial in tuned])
    axes.scatter(numbers[is_chosen], losses[is_chosen], s=50, color=ACCENT, zorder=3)
    name = loss_name(chosen.target)
    axes.set(xlabel="trial of the search", ylabel=f"{name} (lower is better)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return inline(
        drawn, "search", f"{name} of {len(tuned)} trials of the search; the lowest: {losses.min():.4g}"
    )


def worst_group(evaluation: Evaluation) -> Group:
    """Return the category with the lowest accuracy or the largest error."""
    sign = -1 if evaluation.target.kind == "regression" else 1
    return min(evaluation.groups, key=lambda group: sign * group.quality)


def groups(evaluation: Evaluation) -> str:
    """Draw the accuracy for each category, with 95% intervals; of numbers, the mean absolute error."""
    is_number = evaluation.target.kind == "regression"
    ranked = evaluation.groups[::-1]
    drawn = figure(WIDTH, max(1.6, 0.27 * len(ranked) + 0.5))
    axes = drawn.add_subplot()
    positions = np.arange(len(ranked))
    qualities = np.array([group.quality for group in ranked])
    if not is_number:
        low, high = wilson_interval(qualities, np.array([group.rows for group in ranked]))
        axes.hlines(positions, low, high, color=ACCENT, alpha=0.45, linewidth=3)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlim(None, 1.004)
    axes.axvline(
        evaluation.metrics["mae" if is_number else "accuracy"],
        color=MUTED,
        linewidth=1,
        linestyle=(0, (3, 3)),
    )
    axes.scatter(qualities, positions, color=ACCENT, s=34, zorder=3)
    axes.set_yticks(positions, [f"{group.field} {_short(group.category)}" for group in ranked])
    name = "mean absolute error" if is_number else "accuracy, with 95% interval"
    axes.set(xlabel=name, ylim=(-0.6, len(ranked) - 0.4))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    _names_at_left(axes)
    worst = worst_group(evaluation)
    place = f"{worst.field} {worst.category}"
    text = f"Accuracy by category; lowest for {place}: {worst.quality:.1%}"
    if is_number:
        text = f"Mean absolute error by category; largest for {place}: {worst.quality:.4g}"
    return inline(drawn, "groups", text)


def field(raw: RawField, dataset: Dataset, is_positive: npt.NDArray[np.bool_]) -> str:
    """Draw the distribution of one raw field in two parts of the data, such as the two classes."""
    drawn = figure(2.6, 1.55)
    if isinstance(raw, Number):
        values = np.array([candidate[raw.name] for candidate in dataset.candidates])
        if not _is_discrete(values):
            _histogram(drawn.add_subplot(), values, is_positive)
        else:
            _shares(drawn.add_subplot(), np.unique(values), values, is_positive)
    else:
        given = [candidate[raw.name] for candidate in dataset.candidates]
        members = {category: has_category(given, category) for category in categories_of(raw)}
        shown = _most_frequent(members)
        drawn.set_figheight(max(1.55, 0.2 * len(shown) + 0.3))
        _category_shares(drawn.add_subplot(), shown, len(members), is_positive)
    (axes,) = drawn.axes
    axes.grid(visible=False)
    return inline(drawn, f"field-{raw.name}", f"Distribution of {raw.name} in each part")


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
    members: Mapping[str, npt.NDArray[np.bool_]],
    count: int,
    is_positive: npt.NDArray[np.bool_],
) -> None:
    """Draw the share of each category, one below the other, so that no names overlap."""
    positions = np.arange(len(members))
    for part, colour, shift in ((is_positive, POSITIVE, -0.2), (~is_positive, NEGATIVE, 0.2)):
        shares = [np.mean(has[part]) for has in members.values()]
        axes.barh(positions + shift, shares, height=0.38, color=colour, alpha=0.75)
    axes.set_yticks(positions, [_short(category) for category in members])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_xticks([])
    if len(members) < count:
        axes.set_xlabel(f"and {count - len(members)} more")
    axes.spines["bottom"].set_visible(False)


def _most_frequent(members: Mapping[str, npt.NDArray[np.bool_]]) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the categories in their order, or of very many only the most frequent."""
    if len(members) <= MAX_CATEGORIES:
        return dict(members)
    return dict(sorted(members.items(), key=lambda item: -int(item[1].sum()))[:MAX_CATEGORIES])


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
