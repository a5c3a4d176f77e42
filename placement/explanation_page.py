"""A page of explanations: for each candidate a waterfall from the baseline to its score.

The page is self-contained, like training's report, and shows the candidates' values.
"""

from collections.abc import Sequence
from html import escape
from itertools import accumulate, pairwise

from matplotlib.axes import Axes

from placement.explained import Explained
from training.reports.page import page
from training.reports.svg import INK, LINE, MUTED, NEGATIVE, POSITIVE, figure, inline, style

#: Width of a chart, and height of a field in it, in inches.
WIDTH, ROW_HEIGHT = 7.0, 0.3
#: Part of the bars' range that a label takes on each side of it.
LABEL_SHARE = 0.17


def render(explained: Sequence[Explained]) -> str:
    """Render the HTML of the page."""
    with style():
        cards = [_card(one) for one in explained]
    header = """<header><h1>Why these answers?</h1>
<p class="lead">Each chart leads from the baseline, the mean score, to the score of one row: its
probability or number.
A bar is the contribution of one field; all of them add up to the difference.</p></header>"""
    return page("Explanations", [header, *cards])


def waterfall(one: Explained) -> str:
    """Draw how the contributions lead from the baseline to the score, as inline SVG."""
    ranked = one.contributions
    drawn = figure(WIDTH, ROW_HEIGHT * (len(ranked) + 2) + 0.5)
    axes = drawn.add_subplot()
    levels = list(accumulate((value for _, value in ranked), initial=one.explanation["baseline"]))
    for row, ((_, value), (before, after)) in enumerate(zip(ranked, pairwise(levels), strict=True), start=1):
        axes.barh(row, value, left=before, height=0.62, color=POSITIVE if value > 0 else NEGATIVE)
        axes.plot([after, after], [row, row + 1], color=MUTED, linewidth=0.8)
        side, offset = ("left", 4) if value > 0 else ("right", -4)
        _label(axes, f"{value:+.3f}", (after, row), offset, ha=side)
    for row, level in ((0, levels[0]), (len(ranked) + 1, levels[-1])):
        axes.plot(level, row, "o", color=INK)
        _label(axes, f"{level:.3f}", (level, row), 7)
    axes.plot([levels[0], levels[0]], [0, 1], color=MUTED, linewidth=0.8)
    axes.axvline(levels[0], color=LINE, linewidth=1, zorder=0)
    axes.set_yticks(range(len(levels) + 1), ["baseline", *(label for label, _ in ranked), one.score_name])
    axes.tick_params(axis="y", length=0)
    axes.spines.left.set_visible(False)
    axes.grid(axis="y", visible=False)
    span = max(levels) - min(levels) or 1.0
    axes.set_xlim(min(levels) - LABEL_SHARE * span, max(levels) + LABEL_SHARE * span)
    axes.invert_yaxis()
    axes.set_xlabel(one.explained)
    first, value = ranked[0]
    return inline(
        drawn,
        f"candidate{one.number}",
        f"From the baseline {levels[0]:.3f} to {levels[-1]:.3f}; {first} contributes most, {value:+.3f}",
    )


def _label(axes: Axes, text: str, at: tuple[float, float], points: float, ha: str = "left") -> None:
    """Write a text beside a place, `points` to the right of it."""
    axes.annotate(text, at, (points, 0), textcoords="offset points", va="center", ha=ha, color=INK)


def _card(one: Explained) -> str:
    notes = [f"{one.score_name} {one.score:.3f}, by version {one.version}."]
    if not one.explanation["exact"]:
        largest = max(one.explanation["standard_errors"].values())
        notes.append(f"Contributions are estimated; their standard errors are up to {largest:.4f}.")
    if one.changes:
        notes.append(f"Would turn it: {'; or '.join(one.changes)}.")
    elif one.is_negative:
        notes.append("No change of one or two fields was found that turns it.")
    return (
        f'<section class="card wide"><h2>Row {one.number}: {escape(one.output)} {escape(one.answer)}</h2>'
        f"<p>{escape(' '.join(notes))}</p>{waterfall(one)}</section>"
    )
