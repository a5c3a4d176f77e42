"""The report's card about the version that a new one replaces: metrics, and rows that change side."""

from collections.abc import Iterator
from html import escape

from training.candidates import Task
from training.reports.comparison import Comparison
from transformer.bundle.classes import Label, class_name
from transformer.bundle.format import Bundle

#: Maximum numbers of rows that are listed for each side.
MAX_LISTED_ROWS = 50


def comparison_card(bundle: Bundle, task: Task, comparison: Comparison) -> str:
    """Render the card as HTML."""
    previous = comparison.previous
    rows = []
    for name, value in bundle.metrics.items():
        if (before := previous.metrics.get(name)) is not None:
            shown = (f"{before:.4f}", f"{value:.4f}", f"{value - before:+.4f}")
            cells = "".join(f"<td>{text}</td>" for text in shown)
            rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    heads = "".join(
        f'<th scope="col">{escape(text)}</th>'
        for text in ("metric", previous.version, bundle.version, "difference")
    )
    origin = "imported" if previous.imported else "trained on other data"
    old, new = previous.training_data, bundle.training_data
    if old is not None and new is not None and old.sha256 == new.sha256:
        origin = "trained on the same data"
    sides = "".join(f"<p>{escape(text)}</p>" for text in _sides(comparison, task))
    return f"""<section class="card wide"><h2>What changes against {escape(previous.version)}?</h2>
<p>{escape(previous.version)} was {origin}. The metrics of each version come from its own
{"evaluation" if previous.imported else "cross-validation"}.</p>
<table class="metrics"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>
<p>{escape(str(comparison))}, as callers would see it.</p>{sides}</section>"""


def _sides(comparison: Comparison, task: Task) -> Iterator[str]:
    if task.kind == "binary":
        sides: list[tuple[Label, str]] = [(True, task.positive_name), (False, task.negative_name)]
    else:
        sides = [(label, class_name(label)) for label in task.classes]
    for side, name in sides:
        changes = [change for change in comparison.changes if change.now == side]
        if not changes:
            continue
        right = sum(change.is_right for change in changes)
        listed = ", ".join(str(change.row) for change in changes[:MAX_LISTED_ROWS])
        more = f" and {len(changes) - MAX_LISTED_ROWS:,} more" if len(changes) > MAX_LISTED_ROWS else ""
        yield f"{len(changes):,} to {name}, which {right:,} of them are: rows {listed}{more}."
