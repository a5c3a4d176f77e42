"""The report of a version: one HTML file that people would rather look at than read.

It needs nothing but itself: no script, no font, no image from elsewhere. No candidate can be found in it.
"""

import time
from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np

from training import charts
from training.encoding import encode
from training.evaluation import THRESHOLD, Evaluation
from training.fitting import Fitted
from training.svg import style
from transformer.bundle.format import Bundle

CSS_FILE = Path(__file__).with_name("report.css")


def render(bundle: Bundle, fitted: Fitted) -> str:
    """Content of the report's file."""
    title = escape(f"{bundle.name} {bundle.version}")
    with style():
        parts = [
            _header(bundle, fitted),
            _tiles(fitted),
            f'<div class="grid">{"".join(_cards(fitted))}</div>',
            _fields(fitted),
            _facts(bundle, fitted),
        ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: model report</title>
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
    accuracy = bundle.metrics["accuracy"]
    return f"""<header>
<p class="eyebrow">{escape(bundle.name)} {escape(bundle.version)} · {bundle.created:%-d %B %Y}</p>
<h1>Right about <em>{accuracy * 100:.1f} of 100</em> candidates that it had not seen.</h1>
<p class="lead">{escape(fitted.chosen.estimator.name)}, fitted on {_count(bundle.training_data.rows)}
candidates ({escape(bundle.training_data.source)}). Everything below is measured by cross-validation: each
candidate was judged by a model that was fitted without them.</p>
</header>"""


def _tiles(fitted: Fitted) -> str:
    metrics, positive = fitted.evaluation.metrics, fitted.evaluation.positive
    usual = max(positive.mean(), 1 - positive.mean())
    label = escape(fitted.dataset.task.positive_class)
    tiles = [
        ("Accuracy", f"{metrics['accuracy']:.1%}", f"always the same answer: {usual:.1%}"),
        ("ROC AUC", f"{metrics['roc_auc']:.3f}", "a coin: 0.5, perfect: 1"),
        ("Brier score", f"{metrics['brier']:.3f}", f"always the same answer: {usual * (1 - usual):.3f}"),
        ("Precision", f"{metrics['precision']:.1%}", f"of the predicted are {label}"),
        ("Recall", f"{metrics['recall']:.1%}", f"of the {label} are found"),
    ]
    cells = (
        f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in tiles
    )
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def _cards(fitted: Fitted) -> Iterator[str]:
    evaluation, task = fitted.evaluation, fitted.dataset.task
    positive, negative = task.positive_class, task.negative_class
    yield _card("How sure is it?", _sure(evaluation), charts.probabilities(evaluation, positive, negative))
    yield _card(
        "Does the probability keep its word?",
        "On the dashed line it does. The larger a dot, the more candidates; the bars are 95% intervals.",
        charts.calibration(evaluation, positive),
    )
    yield _card("Where is it wrong?", _wrong(evaluation), _confusion(evaluation, positive, negative))
    yield _card(
        "Can it tell them apart?", "The nearer to the upper left corner, the better.", charts.roc(evaluation)
    )
    yield from _fields_cards(fitted)
    yield _card(
        "Is the threshold right?",
        f"Precision: how many that it calls {positive} are so. Recall: how many of the {positive} it finds.",
        charts.threshold(evaluation),
    )
    yield _why(fitted)


def _fields_cards(fitted: Fitted) -> Iterator[str]:
    evaluation = fitted.evaluation
    first = evaluation.importances[0].field
    yield _card(
        "What does it look at?",
        f"At {first} most of all: shuffled among the candidates, accuracy falls the furthest.",
        charts.importance(evaluation),
    )
    if evaluation.groups:
        accuracy = evaluation.metrics["accuracy"]
        yield _card(
            "For whom is it right?", _fairness(evaluation), charts.groups(evaluation.groups, accuracy)
        )


def _why(fitted: Fitted) -> str:
    if len(fitted.trials) == 1:
        return _card("Why this model?", "It was asked for by its name; no other was tried.", "")
    return _card(
        "Why this model?",
        "Fastest first. The first dot in the shade, which is one standard error about the best, is taken.",
        charts.choice(fitted.trials, fitted.chosen),
    )


def _card(question: str, answer: str, content: str) -> str:
    return f'<section class="card"><h2>{question}</h2><p>{escape(answer)}</p>{content}</section>'


def _sure(evaluation: Evaluation) -> str:
    sure = np.abs(evaluation.probabilities - THRESHOLD) >= 0.4
    if not sure.any():
        return "None of the probabilities is below 10% or above 90%."
    right = ((evaluation.probabilities >= THRESHOLD) == evaluation.positive)[sure].mean()
    return (
        f"{sure.mean():.0%} of the probabilities are below 10% or above 90%; of those, {right:.1%} are right."
    )


def _wrong(evaluation: Evaluation) -> str:
    (_, false_alarms), (missed, _) = evaluation.confusion.tolist()
    return (
        f"{false_alarms} false alarms and {missed} missed, of {_count(len(evaluation.positive))} candidates."
    )


def _fairness(evaluation: Evaluation) -> str:
    worst = min(evaluation.groups, key=lambda group: group.accuracy)
    return (
        f"Least often for {worst.field} {worst.category}: {worst.accuracy:.1%} of {_count(worst.rows)} "
        "candidates. The dashed line is the accuracy for all."
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
    heads = "".join(f'<th scope="col">said {escape(name)}</th>' for name in (positive, negative))
    table = f"<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<table class="confusion">{table}</table>'


def _fields(fitted: Fitted) -> str:
    task = fitted.dataset.task
    cells = (
        f"<div><h3>{escape(raw.name)}</h3>{charts.field(raw, fitted.dataset)}</div>"
        for raw in task.signature.fields
    )
    return f"""<section class="card wide"><h2>Whom did it learn from?</h2>
<p>How each class is spread: <span class="key positive"></span>{escape(task.positive_class)}
<span class="key negative"></span>{escape(task.negative_class)}</p>
<div class="fields">{"".join(cells)}</div></section>"""


def _facts(bundle: Bundle, fitted: Fitted) -> str:
    one, many = predict_ms(fitted, 1), predict_ms(fitted, 64)
    data = bundle.training_data
    facts = {
        "Estimator": f"<code>{escape(bundle.model.estimator)}</code>",
        "Time to predict": f"{one:.1f} ms for one candidate, {many:.1f} ms for 64, where it was trained",
        "Trained on": f"{_count(data.rows)} candidates, {escape(data.source)}",
        "Its SHA-256": f"<code>{data.sha256}</code>",
        "Model file": f"<code>{bundle.model.file}</code>, SHA-256 <code>{bundle.model.sha256}</code>",
        "Answers": f"the probability of {escape(bundle.positive_class)}; from {THRESHOLD:.0%} on it says so",
        "Takes": f"{len(bundle.signature.fields)} fields, as {len(bundle.vectorizer.feature_names)} features",
        "Libraries": escape(
            ", ".join(f"{name} {version}" for name, version in bundle.model.libraries.items())
        ),
        "Remembers": escape(
            ", ".join(version.version for version in bundle.previous) or "no earlier version"
        ),
        "More figures": ", ".join(f"{escape(name)} {value:.4f}" for name, value in bundle.metrics.items()),
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in facts.items())
    note = (
        "These candidates are generated from the statistics of real ones. The figures say how well the model "
        "knows the generator; how well it knows people, only real candidates can tell."
        if fitted.dataset.generated
        else "The model knows candidates like those that it learned from, and repeats what was decided about "
        "them. Where the probability is near the threshold, or a category stands out, let a person decide."
    )
    return f"""<section class="card wide"><h2>The model's card</h2>
<dl class="facts">{items}</dl><p class="note">{note}</p></section>"""


def predict_ms(fitted: Fitted, rows: int) -> float:
    """Median time in milliseconds to predict so many candidates at once, of 15 calls."""
    repeated = (fitted.dataset.candidates * (rows // len(fitted.dataset.candidates) + 1))[:rows]
    features, times = encode(fitted.vectorizer, repeated), []
    for _ in range(15):
        start = time.perf_counter()
        fitted.model.predict_proba(features)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1000


def _count(number: int) -> str:
    return f"{number:,}"
