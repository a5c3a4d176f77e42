"""Report of a version: one HTML file of charts and figures.

The file is self-contained: no scripts, no fonts or images from elsewhere. It contains no candidate's values.
"""

import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from training.candidates import Task
from training.cross_validation import Trial
from training.encoding import encode
from training.estimators import scores_of
from training.evaluation import Evaluation
from training.fitting import Fitted
from training.metric_names import metrics_text
from training.reports import charts
from training.reports.comparison import Comparison
from training.reports.comparison_card import comparison_card
from training.reports.kind_cards import card, count, first_cards, headline, last_cards, output, parts, tiles
from training.reports.svg import style
from training.selection import NEGLIGIBLE_MS
from transformer.bundle.format import Bundle, TrainingData

CSS_FILE = Path(__file__).with_name("report.css")


def render(bundle: Bundle, fitted: Fitted, comparison: Comparison | None = None) -> str:
    """Render the HTML of the report, with a comparison if an earlier version is replaced."""
    with style():
        parts = [
            _header(bundle, fitted),
            _tiles(fitted),
            f'<div class="grid">{"".join(_cards(fitted))}</div>',
            comparison_card(bundle, fitted.dataset.task, comparison) if comparison else "",
            _fields(fitted),
            _facts(bundle, fitted),
        ]
    return page(f"{bundle.name} {bundle.version}: model report", parts)


def page(title: str, parts: Sequence[str]) -> str:
    """Return a page with the report's styles."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{CSS_FILE.read_text()}</style>
</head>
<body>
<main>
{chr(10).join(parts)}
</main>
</body>
</html>
"""


def _header(bundle: Bundle, fitted: Fitted) -> str:
    data = _training_data(bundle)
    row, rows = fitted.dataset.task.row_name, fitted.dataset.task.row_names
    return f"""<header>
<p class="eyebrow">{escape(bundle.name)} {escape(bundle.version)} · {bundle.created:%-d %B %Y}</p>
<h1>{headline(fitted)}</h1>
<p class="lead">{escape(str(fitted.chosen.estimator))}, fitted on {count(data.rows)}
{rows} ({escape(data.source)}). All figures below come from cross-validation: each
{row} is predicted by a model that was fitted on other {rows}.</p>
</header>"""


def _tiles(fitted: Fitted) -> str:
    cells = (
        f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>"
        for name, value, note in tiles(fitted)
    )
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def _cards(fitted: Fitted) -> Iterator[str]:
    yield from first_cards(fitted)
    yield from _fields_cards(fitted)
    yield from last_cards(fitted)
    yield _choice(fitted)
    tuned = [trial for trial in fitted.trials if trial.estimator.parameters]
    if tuned:
        yield _search(fitted, tuned)


def _fields_cards(fitted: Fitted) -> Iterator[str]:
    evaluation, task = fitted.evaluation, fitted.dataset.task
    first = evaluation.importances[0].field
    is_number = task.kind == "regression"
    effect = "raises the error" if is_number else "lowers the accuracy"
    yield card(
        "Which fields matter most?",
        f"{first} matters most: shuffling its values among the {task.row_names} {effect} most.",
        charts.importance(evaluation),
    )
    if evaluation.groups:
        yield card(
            f"How {'wrong' if is_number else 'accurate'} is it for each category?",
            _worst_group(evaluation, task),
            charts.groups(evaluation),
        )


def _choice(fitted: Fitted) -> str:
    if len(fitted.trials) == 1:
        return card("Why this model?", "It was chosen by name; no other estimator was tried.", "")
    return card(
        "Why this model?",
        "The fastest estimator is first. The shaded area is one standard error around the best. Training "
        f"chooses the fastest one in it, or a better one that takes at most {NEGLIGIBLE_MS} ms longer for 64 "
        f"{fitted.dataset.task.row_names}.",
        charts.choice(fitted.trials, fitted.chosen),
    )


def _search(fitted: Fitted, tuned: Sequence[Trial]) -> str:
    chosen = fitted.chosen.estimator
    return card(
        "What did the search find?",
        f"{len(tuned)} trials of other parameters. The line is the lowest loss so far. Training chose "
        f"{chosen}{'' if chosen.parameters else ' as it is'}.",
        charts.search(tuned, fitted.chosen),
    )


def _worst_group(evaluation: Evaluation, task: Task) -> str:
    rows = task.row_names
    worst = charts.worst_group(evaluation)
    place = f"{worst.field} {worst.category}"
    if task.kind == "regression":
        return (
            f"Largest error for {place}: {worst.quality:.4g} in the mean, of {count(worst.rows)} {rows}. The "
            f"dashed line is the mean absolute error of all {rows}."
        )
    return (
        f"Lowest for {place}: {worst.quality:.1%} of {count(worst.rows)} {rows}. The dashed line is the "
        f"accuracy for all {rows}."
    )


def _fields(fitted: Fitted) -> str:
    task = fitted.dataset.task
    is_first, first, second = parts(fitted.dataset)
    cells = (
        f"<div><h3>{escape(raw.name)}</h3>{charts.field(raw, fitted.dataset, is_first)}</div>"
        for raw in task.signature.fields
    )
    return f"""<section class="card wide"><h2>What did it learn from?</h2>
<p>Distribution of each field: <span class="key positive"></span>{escape(first)}
<span class="key negative"></span>{escape(second)}</p>
<div class="fields">{"".join(cells)}</div></section>"""


def _facts(bundle: Bundle, fitted: Fitted) -> str:
    one, many = predict_ms(fitted, 1), predict_ms(fitted, 64)
    data, row, rows = _training_data(bundle), fitted.dataset.task.row_name, fitted.dataset.task.row_names
    facts = {
        "Estimator": f"<code>{escape(bundle.model.estimator)}</code>",
        "Served as": _served_as(bundle, fitted),
        "Time to predict": f"{one:.1f} ms for one {row}, {many:.1f} ms for 64, on the training machine",
        "Trained on": f"{count(data.rows)} {rows}, {escape(data.source)}",
        "Training data's SHA-256": f"<code>{data.sha256}</code>",
        "Model file": f"<code>{bundle.model.file}</code>, SHA-256 <code>{bundle.model.sha256}</code>",
        "Output": f"{output(fitted)}{_rule(bundle)}",
        "Input": f"{len(bundle.signature.fields)} fields, "
        f"encoded as {len(bundle.vectorizer.feature_names)} features",
        "Libraries": escape(bundle.model.library_versions),
        "Earlier versions in the bundle": escape(
            ", ".join(version.version for version in bundle.previous) or "none"
        ),
        "More metrics": escape(metrics_text(bundle.metrics)),
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in facts.items())
    note = (
        f"These {rows} are generated from the statistics of real ones. The figures show how well the model "
        f"predicts generated {rows}; its quality for real ones can only be measured on real data."
        if fitted.dataset.generated
        else f"The model reproduces its training data, for similar {rows}. {_caution(fitted)}"
    )
    return f"""<section class="card wide"><h2>Model card</h2>
<dl class="facts">{items}</dl><p class="note">{note}</p></section>"""


def _caution(fitted: Fitted) -> str:
    if fitted.dataset.task.kind == "regression":
        return "Let a person decide where the error for a category is large."
    return (
        "Let a person decide if the probability is near the threshold, or if the accuracy for a "
        "category is low."
    )


def _training_data(bundle: Bundle) -> TrainingData:
    if bundle.training_data is None:
        raise ValueError("the report of an imported version would need the data that it was trained on")
    return bundle.training_data


def _rule(bundle: Bundle) -> str:
    """Return the rule that chose the threshold, if it is not the number itself."""
    rule = (bundle.recipe.threshold if bundle.recipe is not None else None) or ""
    return f", the choice of {escape(rule)}" if rule[:1].isalpha() else ""


def _served_as(bundle: Bundle, fitted: Fitted) -> str:
    served = fitted.served
    if bundle.model.serving_form is None:
        return "the estimator itself" + (f": {escape(served.reason)}" if served.reason else "")
    task = fitted.dataset.task
    what = f"probabilities of {task.positive_name}" if task.kind == "binary" else "results"
    equal = f"equal {what} on {count(served.rows)} rows"
    if served.rounding:
        others = f"those of {task.negative_name}" if task.kind == "binary" else "they"
        equal += f"; {others} differ by {served.rounding:.1g} at most"
    return f"<code>{escape(bundle.model.serving_form)}</code>, {escape(equal)}"


def predict_ms(fitted: Fitted, rows: int) -> float:
    """Median time of 15 calls that predict `rows` candidates at once, in milliseconds."""
    repeated = (fitted.dataset.candidates * (rows // len(fitted.dataset.candidates) + 1))[:rows]
    features, times = encode(fitted.vectorizer, repeated), []
    for _ in range(15):
        start = time.perf_counter()
        scores_of(fitted.served.model, features, fitted.evaluation.target)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1000
