"""Report of a version: one HTML file of charts and figures.

The file is self-contained: no scripts, no fonts or images from elsewhere. It contains no candidate's values.
"""

import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from training import charts
from training.candidates import Task
from training.comparison import Comparison
from training.comparison_card import comparison_card
from training.encoding import encode
from training.evaluation import Evaluation
from training.fitting import Fitted
from training.selection import NEGLIGIBLE_MS
from training.svg import style
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
    accuracy, data = bundle.metrics["accuracy"], _training_data(bundle)
    row, rows = fitted.dataset.task.row_name, fitted.dataset.task.row_names
    return f"""<header>
<p class="eyebrow">{escape(bundle.name)} {escape(bundle.version)} · {bundle.created:%-d %B %Y}</p>
<h1>Correct for <em>{accuracy * 100:.1f} of 100</em> {rows} that it was not fitted on.</h1>
<p class="lead">{escape(fitted.chosen.estimator.name)}, fitted on {_count(data.rows)}
{rows} ({escape(data.source)}). All figures below come from cross-validation: each
{row} is predicted by a model that was fitted on other {rows}.</p>
</header>"""


def _tiles(fitted: Fitted) -> str:
    metrics, positive = fitted.evaluation.metrics, fitted.evaluation.positive
    majority = max(positive.mean(), 1 - positive.mean())
    task = fitted.dataset.task
    predicted = escape(f"{task.label} = {task.positive_class}")
    tiles = [
        ("Accuracy", f"{metrics['accuracy']:.1%}", f"baseline, always the same class: {majority:.1%}"),
        ("ROC AUC", f"{metrics['roc_auc']:.3f}", "random: 0.5, perfect: 1"),
        (
            "Brier score",
            f"{metrics['brier']:.3f}",
            f"baseline, always the same probability: {majority * (1 - majority):.3f}",
        ),
        ("Precision", f"{metrics['precision']:.1%}", f"of all that are predicted {predicted} are right"),
        ("Recall", f"{metrics['recall']:.1%}", f"of all with {predicted} are predicted so"),
    ]
    cells = (
        f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in tiles
    )
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def _cards(fitted: Fitted) -> Iterator[str]:
    evaluation, task = fitted.evaluation, fitted.dataset.task
    positive, negative = task.positive_class, task.negative_class
    yield _card(
        "How are the probabilities distributed?",
        _confident(evaluation),
        charts.probabilities(evaluation, positive, negative),
    )
    yield _card(
        "Are the probabilities calibrated?",
        f"On the dashed line, they are. Larger dots stand for more {task.row_names}; bars are 95% intervals.",
        charts.calibration(evaluation, positive),
    )
    yield _card(
        "Which errors does it make?", _errors(evaluation, task), _confusion(evaluation, positive, negative)
    )
    yield _card(
        "How well does it separate the classes?",
        "Closer to the upper left corner is better.",
        charts.roc(evaluation),
    )
    yield from _fields_cards(fitted)
    yield _card(
        "What if the threshold were different?",
        f"Precision: share of the predictions {task.label} = {positive} that are right. "
        f"Recall: share of all with {task.label} = {positive} that are predicted so.",
        charts.threshold(evaluation),
    )
    yield _choice(fitted)


def _fields_cards(fitted: Fitted) -> Iterator[str]:
    evaluation, task = fitted.evaluation, fitted.dataset.task
    first = evaluation.importances[0].field
    yield _card(
        "Which fields matter most?",
        f"{first} matters most: shuffling its values among the {task.row_names} lowers the accuracy most.",
        charts.importance(evaluation),
    )
    if evaluation.groups:
        accuracy = evaluation.metrics["accuracy"]
        yield _card(
            "How accurate is it for each category?",
            _lowest_accuracy(evaluation, task),
            charts.groups(evaluation.groups, accuracy),
        )


def _choice(fitted: Fitted) -> str:
    if len(fitted.trials) == 1:
        return _card("Why this model?", "It was chosen by name; no other estimator was tried.", "")
    return _card(
        "Why this model?",
        "The fastest estimator is first. The shaded area is one standard error around the best. Training "
        f"chooses the fastest one in it, or a better one that takes at most {NEGLIGIBLE_MS} ms longer for 64 "
        f"{fitted.dataset.task.row_names}.",
        charts.choice(fitted.trials, fitted.chosen),
    )


def _card(question: str, answer: str, content: str) -> str:
    return f'<section class="card"><h2>{question}</h2><p>{escape(answer)}</p>{content}</section>'


def _confident(evaluation: Evaluation) -> str:
    confident = np.abs(evaluation.probabilities - 0.5) >= 0.4
    if not confident.any():
        return "None of the probabilities is below 10% or above 90%."
    correct = ((evaluation.probabilities >= evaluation.threshold) == evaluation.positive)[confident].mean()
    return (
        f"{confident.mean():.0%} of the probabilities are below 10% or above 90%; "
        f"{correct:.1%} of those predictions are correct."
    )


def _errors(evaluation: Evaluation, task: Task) -> str:
    (_, false_alarms), (missed, _) = evaluation.confusion.tolist()
    return (
        f"{false_alarms} false positives and {missed} false negatives, "
        f"of {_count(len(evaluation.positive))} {task.row_names}."
    )


def _lowest_accuracy(evaluation: Evaluation, task: Task) -> str:
    worst = min(evaluation.groups, key=lambda group: group.accuracy)
    return (
        f"Lowest for {worst.field} {worst.category}: {worst.accuracy:.1%} of {_count(worst.rows)} "
        f"{task.row_names}. The dashed line is the accuracy for all {task.row_names}."
    )


def _confusion(evaluation: Evaluation, positive: str, negative: str) -> str:
    rows = []
    for truth, name in ((1, positive), (0, negative)):
        cells = []
        for predicted in (1, 0):
            count = int(evaluation.confusion[truth][predicted])
            part = count / evaluation.confusion[truth].sum()
            kind = "right" if truth == predicted else "wrong"
            cells.append(
                f'<td class="{kind}" style="--part: {part:.3f}">{_count(count)}<small>{part:.1%}</small></td>'
            )
        rows.append(f'<tr><th scope="row">is {escape(name)}</th>{"".join(cells)}</tr>')
    heads = "".join(f'<th scope="col">predicted {escape(name)}</th>' for name in (positive, negative))
    table = f"<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<table class="confusion">{table}</table>'


def _fields(fitted: Fitted) -> str:
    task = fitted.dataset.task
    cells = (
        f"<div><h3>{escape(raw.name)}</h3>{charts.field(raw, fitted.dataset)}</div>"
        for raw in task.signature.fields
    )
    return f"""<section class="card wide"><h2>What did it learn from?</h2>
<p>Distribution of each field by class: <span class="key positive"></span>{escape(task.positive_class)}
<span class="key negative"></span>{escape(task.negative_class)}</p>
<div class="fields">{"".join(cells)}</div></section>"""


def _facts(bundle: Bundle, fitted: Fitted) -> str:
    one, many = predict_ms(fitted, 1), predict_ms(fitted, 64)
    data, row, rows = _training_data(bundle), fitted.dataset.task.row_name, fitted.dataset.task.row_names
    facts = {
        "Estimator": f"<code>{escape(bundle.model.estimator)}</code>",
        "Served as": _served_as(bundle, fitted),
        "Time to predict": f"{one:.1f} ms for one {row}, {many:.1f} ms for 64, on the training machine",
        "Trained on": f"{_count(data.rows)} {rows}, {escape(data.source)}",
        "Training data's SHA-256": f"<code>{data.sha256}</code>",
        "Model file": f"<code>{bundle.model.file}</code>, SHA-256 <code>{bundle.model.sha256}</code>",
        "Output": f"probability of {escape(bundle.positive_class)}, predicted from {bundle.threshold:.1%} on"
        f"{_rule(bundle)}",
        "Input": f"{len(bundle.signature.fields)} fields, "
        f"encoded as {len(bundle.vectorizer.feature_names)} features",
        "Libraries": escape(
            ", ".join(f"{name} {version}" for name, version in bundle.model.libraries.items())
        ),
        "Earlier versions in the bundle": escape(
            ", ".join(version.version for version in bundle.previous) or "none"
        ),
        "More metrics": ", ".join(f"{escape(name)} {value:.4f}" for name, value in bundle.metrics.items()),
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in facts.items())
    note = (
        f"These {rows} are generated from the statistics of real ones. The figures show how well the model "
        f"predicts generated {rows}; its quality for real ones can only be measured on real data."
        if fitted.dataset.generated
        else f"The model reproduces the decisions in its training data, for similar {rows}. Let a person "
        "decide if the probability is near the threshold, or if the accuracy for a category is low."
    )
    return f"""<section class="card wide"><h2>Model card</h2>
<dl class="facts">{items}</dl><p class="note">{note}</p></section>"""


def _training_data(bundle: Bundle) -> TrainingData:
    if bundle.training_data is None:
        raise ValueError("the report of an imported version would need the data that it was trained on")
    return bundle.training_data


def _rule(bundle: Bundle) -> str:
    """Return the rule that chose the threshold, if it is not the number itself."""
    rule = bundle.recipe.threshold if bundle.recipe is not None else ""
    return f", the choice of {escape(rule)}" if rule[:1].isalpha() else ""


def _served_as(bundle: Bundle, fitted: Fitted) -> str:
    served = fitted.served
    if bundle.model.serving_form is None:
        return "the estimator itself" + (f": {escape(served.reason)}" if served.reason else "")
    equal = f"equal probabilities of {bundle.positive_class} on {_count(served.rows)} rows"
    if served.rounding:
        equal += f"; those of {fitted.dataset.task.negative_class} differ by {served.rounding:.1g} at most"
    return f"<code>{escape(bundle.model.serving_form)}</code>, {escape(equal)}"


def predict_ms(fitted: Fitted, rows: int) -> float:
    """Median time of 15 calls that predict `rows` candidates at once, in milliseconds."""
    repeated = (fitted.dataset.candidates * (rows // len(fitted.dataset.candidates) + 1))[:rows]
    features, times = encode(fitted.vectorizer, repeated), []
    for _ in range(15):
        start = time.perf_counter()
        fitted.served.model.predict_proba(features)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1000


def _count(number: int) -> str:
    return f"{number:,}"
