"""Headline, tiles and cards of the report that depend on the kind of question."""

from collections.abc import Iterator
from html import escape

import numpy as np
import numpy.typing as npt
from sklearn.metrics import precision_recall_fscore_support

from training.candidates import Task
from training.cross_validation import truth_of
from training.data import Dataset
from training.evaluation import Evaluation
from training.fitting import Fitted
from training.reports import charts
from transformer.bundle.classes import class_name

#: Classes of a confusion matrix; of more, the most frequent ones are shown.
MAX_CONFUSED = 8


def card(question: str, answer: str, content: str) -> str:
    """Return a card: a question, its answer in a sentence, and a chart or a table."""
    return f'<section class="card"><h2>{question}</h2><p>{escape(answer)}</p>{content}</section>'


def count(number: int) -> str:
    """Return a number with separators."""
    return f"{number:,}"


def headline(fitted: Fitted) -> str:
    """Return the report's first sentence, as HTML."""
    metrics, rows = fitted.evaluation.metrics, fitted.dataset.task.row_names
    if fitted.evaluation.target.kind == "regression":
        return f"Wrong by <em>{metrics['mae']:.4g}</em> in the mean, for {rows} that it was not fitted on."
    return f"Correct for <em>{metrics['accuracy'] * 100:.1f} of 100</em> {rows} that it was not fitted on."


def tiles(fitted: Fitted) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and note of each figure at the top."""
    evaluation, task = fitted.evaluation, fitted.dataset.task
    metrics, target = evaluation.metrics, evaluation.target
    if target.kind == "regression":
        truth = evaluation.truth
        always = np.abs(truth - np.median(truth)).mean()
        yield (
            "Mean absolute error",
            f"{metrics['mae']:.4g}",
            f"baseline, always the same number: {always:.4g}",
        )
        yield (
            "Root mean squared error",
            f"{metrics['rmse']:.4g}",
            f"baseline, always the same number: {truth.std():.4g}",
        )
        yield "R²", f"{metrics['r2']:.3f}", "always the same number: 0, perfect: 1"
        return
    shares = np.bincount(evaluation.truth.astype(int)) / len(evaluation.truth)
    yield "Accuracy", f"{metrics['accuracy']:.1%}", f"baseline, always the same class: {shares.max():.1%}"
    if "roc_auc" in metrics:
        yield "ROC AUC", f"{metrics['roc_auc']:.3f}", "random: 0.5, perfect: 1"
    if "brier" in metrics:
        # For two classes it is the squared error of one probability, for more the sum over the classes.
        always = shares.max() * (1 - shares.max()) if target.kind == "binary" else 1 - (shares**2).sum()
        yield (
            "Brier score",
            f"{metrics['brier']:.3f}",
            f"baseline, always the same {'probability' if target.kind == 'binary' else 'probabilities'}: "
            f"{always:.3f}",
        )
    if target.kind == "multiclass":
        yield "Macro F1", f"{metrics['macro_f1']:.3f}", "mean of the classes' F1 scores, each counts the same"
        return
    predicted = escape(f"{task.label} = {task.positive_name}")
    yield "Precision", f"{metrics['precision']:.1%}", f"of all that are predicted {predicted} are right"
    yield "Recall", f"{metrics['recall']:.1%}", f"of all with {predicted} are predicted so"


def first_cards(fitted: Fitted) -> Iterator[str]:
    """Yield the cards before those of the fields."""
    evaluation, task = fitted.evaluation, fitted.dataset.task
    if evaluation.target.kind == "regression":
        yield card(
            "How near are the numbers?",
            f"On the dashed line, they are right. Each dot is one of the {task.row_names}.",
            charts.predicted(evaluation),
        )
        yield card("How are the errors distributed?", _error_quantiles(evaluation), charts.errors(evaluation))
    elif evaluation.target.kind == "multiclass":
        yield card("Which errors does it make?", _most_confused(evaluation, task), _classes(evaluation))
        yield card(
            "How well does it find each class?",
            "Precision: share of the predictions of a class that are right. "
            "Recall: share of those of a class that are predicted so.",
            _by_class(evaluation),
        )
    elif evaluation.probabilities is None:
        yield card(
            "Which errors does it make?", _two_errors(evaluation, task), _two_classes(evaluation, task)
        )
    else:
        yield from _binary_cards(evaluation, task)


def last_cards(fitted: Fitted) -> Iterator[str]:
    """Yield the cards after those of the fields."""
    evaluation, task = fitted.evaluation, fitted.dataset.task
    if evaluation.target.kind != "binary" or evaluation.probabilities is None:
        return
    predicted = f"{task.label} = {task.positive_name}"
    yield card(
        "What if the threshold were different?",
        f"Precision: share of the predictions {predicted} that are right. "
        f"Recall: share of all with {predicted} that are predicted so.",
        charts.threshold(evaluation),
    )


def parts(dataset: Dataset) -> tuple[npt.NDArray[np.bool_], str, str]:
    """Return two parts of the data whose fields are compared: a mask of the first, and the names of both.

    They are the two classes, the most frequent class and all others, or the larger and the smaller numbers.
    """
    truth, task = truth_of(dataset.labels, dataset.task), dataset.task
    if task.kind == "binary":
        return truth, task.positive_name, task.negative_name
    if task.kind == "regression":
        middle = float(np.median(truth))
        return truth > middle, f"{task.label} above {middle:g}", f"{task.label} up to {middle:g}"
    most = int(np.bincount(truth).argmax())
    return truth == most, class_name(task.classes[most]), "other classes"


def output(fitted: Fitted) -> str:
    """Return what the model gives, as HTML."""
    target = fitted.evaluation.target
    if target.kind == "regression":
        return f"number, {escape(fitted.dataset.task.label)}"
    names = escape(", ".join(target.class_names))
    if target.kind == "multiclass":
        return f"one of {names}" + (", and the probability of each" if target.has_probabilities else "")
    positive = escape(fitted.dataset.task.positive_name)
    if not target.has_probabilities:
        return f"yes for {positive}, without a probability"
    return f"probability of {positive}, predicted from {target.threshold:.1%} on"


def _binary_cards(evaluation: Evaluation, task: Task) -> Iterator[str]:
    positive, negative = task.positive_name, task.negative_name
    yield card(
        "How are the probabilities distributed?",
        _confident(evaluation),
        charts.probabilities(evaluation, positive, negative),
    )
    yield card(
        "Are the probabilities calibrated?",
        f"On the dashed line, they are. Larger dots stand for more {task.row_names}; bars are 95% intervals.",
        charts.calibration(evaluation, positive),
    )
    yield card("Which errors does it make?", _two_errors(evaluation, task), _two_classes(evaluation, task))
    yield card(
        "How well does it separate the classes?",
        "Closer to the upper left corner is better.",
        charts.roc(evaluation),
    )


def _confident(evaluation: Evaluation) -> str:
    confident = np.abs(evaluation.positive_probabilities - 0.5) >= 0.4
    if not confident.any():
        return "None of the probabilities is below 10% or above 90%."
    correct = (evaluation.values == evaluation.truth)[confident].mean()
    return (
        f"{confident.mean():.0%} of the probabilities are below 10% or above 90%; "
        f"{correct:.1%} of those predictions are correct."
    )


def _two_errors(evaluation: Evaluation, task: Task) -> str:
    (_, false_alarms), (missed, _) = evaluation.confusion.tolist()
    return (
        f"{false_alarms} false positives and {missed} false negatives, "
        f"of {count(len(evaluation.truth))} {task.row_names}."
    )


def _two_classes(evaluation: Evaluation, task: Task) -> str:
    # The positive class is first.
    return _confusion(evaluation.confusion[::-1, ::-1], [task.positive_name, task.negative_name])


def _confusion(confusion: npt.NDArray[np.intp], names: list[str]) -> str:
    """Return a table of the counts by true class (rows) and prediction (columns), as HTML."""
    rows = []
    for truth, name in enumerate(names):
        cells = []
        for predicted in range(len(names)):
            number = int(confusion[truth][predicted])
            part = number / max(confusion[truth].sum(), 1)
            kind = "right" if truth == predicted else "wrong"
            cells.append(
                f'<td class="{kind}" style="--part: {part:.3f}">{count(number)}<small>{part:.1%}</small></td>'
            )
        rows.append(f'<tr><th scope="row">is {escape(name)}</th>{"".join(cells)}</tr>')
    heads = "".join(f'<th scope="col">predicted {escape(name)}</th>' for name in names)
    table = f"<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<table class="confusion">{table}</table>'


def _classes(evaluation: Evaluation) -> str:
    """Return the confusion matrix of the most frequent classes."""
    confusion = evaluation.confusion
    most = np.sort(np.argsort(-confusion.sum(axis=1), kind="stable")[:MAX_CONFUSED])
    names = [class_name(evaluation.target.classes[place]) for place in most]
    table = _confusion(confusion[np.ix_(most, most)], names)
    left_out = len(confusion) - len(most)
    return table + (f"<p>The {left_out} rarest classes are not shown.</p>" if left_out else "")


def _most_confused(evaluation: Evaluation, task: Task) -> str:
    wrong = evaluation.confusion * ~np.eye(len(evaluation.confusion), dtype=bool)
    total = count(len(evaluation.truth))
    if not wrong.any():
        return f"None, of {total} {task.row_names}."
    truth, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    names = [class_name(evaluation.target.classes[int(place)]) for place in (truth, predicted)]
    return (
        f"{count(int(wrong.sum()))} of {total} {task.row_names} get a wrong class; most often {names[0]} is "
        f"predicted to be {names[1]}."
    )


def _by_class(evaluation: Evaluation) -> str:
    places = list(range(len(evaluation.target.classes)))
    columns = precision_recall_fscore_support(
        evaluation.truth, evaluation.values, labels=places, zero_division=0.0
    )
    rows = [
        f'<tr><th scope="row">{escape(class_name(label))}</th><td>{precision:.1%}</td><td>{recall:.1%}</td>'
        f"<td>{f1:.3f}</td><td>{count(int(rows))}</td></tr>"
        for label, precision, recall, f1, rows in zip(evaluation.target.classes, *columns, strict=True)
    ]
    heads = "".join(
        f'<th scope="col">{name}</th>' for name in ("class", "precision", "recall", "F1", "count")
    )
    return f'<table class="metrics"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _error_quantiles(evaluation: Evaluation) -> str:
    half, most = np.quantile(np.abs(evaluation.values - evaluation.truth), [0.5, 0.9])
    return f"Half of the numbers are wrong by at most {half:.4g}, nine of ten by at most {most:.4g}."
