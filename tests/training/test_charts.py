"""In the report's charts no text covers data or other text."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from training.candidates import Task
from training.data import Dataset
from training.estimators import ESTIMATORS
from training.evaluation import Evaluation
from training.fitting import fit
from training.generator import generate
from training.reports import charts
from training.reports.svg import style
from transformer.bundle.signature import Category, Number, RawField, Signature

PAYMENTS = (
    "Electronic check",
    "Mailed check",
    "Bank transfer (automatic)",
    "Credit card (automatic, with a discount)",
)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """Figures instead of their SVG."""
    figures: list[Figure] = []

    def keep(figure: Figure, *_: str) -> str:
        figures.append(figure)
        return ""

    monkeypatch.setattr(charts, "inline", keep)
    with style():
        yield figures


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return fit(generate(200), "logistic-regression").evaluation


def test_the_choice_names_every_estimator_and_marks_the_chosen_one(drawn):
    (chosen,) = fit(generate(200), "logistic-regression").trials
    others = [
        dataclasses.replace(chosen, estimator=ESTIMATORS[name], loss=chosen.loss + 0.1)
        for name in ("forest-50", "ridge-classifier")
    ]
    charts.choice([chosen, *others], chosen)
    (axes,) = drawn[0].axes
    labels = {label.get_text(): label.get_fontweight() for label in axes.get_yticklabels()}
    assert labels == {"ridge-classifier": "normal", "forest-50": "normal", "logistic-regression": "bold"}


def rendered(figure: Figure) -> Any:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def overlapping(boxes: list[Bbox]) -> list[tuple[Bbox, Bbox]]:
    return [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]


@pytest.mark.parametrize("chart", ["probabilities", "threshold"])
def test_a_legend_is_beside_the_data(chart, evaluation, drawn):
    if chart == "probabilities":
        charts.probabilities(evaluation, "Placed", "Not Placed")
    else:
        charts.threshold(evaluation)
    (axes,) = drawn[0].axes
    renderer = rendered(drawn[0])
    assert not axes.get_legend().get_window_extent(renderer).overlaps(axes.patch.get_window_extent(renderer))


@pytest.mark.parametrize("power", [1, 3, 10], ids=["no better than chance", "fair", "good"])
def test_the_labels_of_the_roc_curve_do_not_cover_it(power, evaluation, drawn):
    false_rates = np.linspace(0, 1, 101)
    true_rates = false_rates ** (1 / power)
    changed = dataclasses.replace(evaluation)
    vars(changed)["roc"] = false_rates, true_rates
    charts.roc(changed)
    (axes,) = drawn[0].axes
    renderer = rendered(drawn[0])
    curve = axes.transData.transform(np.column_stack([false_rates, true_rates]))
    boxes = [Text.get_window_extent(text, renderer) for text in axes.texts]
    assert len(boxes) == 2
    assert not any(box.count_contains(curve) for box in boxes)
    assert overlapping(boxes) == []


def field_chart(raw: RawField, values: list[Any]) -> None:
    task = Task(
        signature=Signature(fields=(raw,)), label="churn", classes=("no", "yes"), positive_class="yes"
    )
    labels = ["yes", "no"] * (len(values) // 2)
    dataset = Dataset(task, [{raw.name: value} for value in values], labels, "generated", "0" * 64)
    charts.field(raw, dataset, np.array(labels) == "yes")


@pytest.mark.parametrize(
    "categories",
    [PAYMENTS, tuple(f"state number {number}" for number in range(30)), ("$0-$50", "$50-$100")],
    ids=["long names", "many", "dollars"],
)
def test_the_names_of_categories_do_not_overlap(categories, drawn):
    field_chart(Category(name="payment", categories=categories), list(categories) * 4)
    (axes,) = drawn[0].axes
    renderer = rendered(drawn[0])
    names = [label for label in axes.get_yticklabels() if label.get_text()]
    assert 2 <= len(names) <= charts.MAX_CATEGORIES
    assert all(name.get_text().rstrip("…") in "".join(categories) for name in names)
    assert overlapping([name.get_window_extent(renderer) for name in names]) == []
    assert axes.get_xlabel() == ("and 18 more" if len(categories) == 30 else "")


@pytest.mark.parametrize(
    ("values", "ticks"),
    [([0, 1], ["0", "1"]), ([1, 2, 5], ["1", "2", "5"]), ([0.5, 1.5], None), (list(range(30)), None)],
)
def test_a_number_with_few_whole_values_has_one_bar_for_each(values, ticks, drawn):
    field_chart(Number(name="senior", minimum=0, maximum=30), [float(value) for value in values] * 4)
    (axes,) = drawn[0].axes
    if ticks is None:
        assert not axes.containers, "a histogram"
    else:
        assert [label.get_text() for label in axes.get_xticklabels()] == ticks
        assert [len(bars) for bars in axes.containers] == [len(values)] * 2


def test_the_choice_shows_the_best_tuned_trial_of_each_estimator_once(drawn):
    (plain,) = fit(generate(200), "logistic-regression").trials
    tuned = [
        dataclasses.replace(
            plain, estimator=plain.estimator.with_parameters({"logisticregression__C": c}), loss=loss
        )
        for c, loss in ((1.5, plain.loss - 0.001), (2.0, plain.loss - 0.002), (3.0, plain.loss + 0.1))
    ]
    charts.choice([plain, *tuned], tuned[1])
    charts.search(tuned, tuned[1])
    of_choice, of_search = (figure.axes[0] for figure in drawn)
    labels = {label.get_text(): label.get_fontweight() for label in of_choice.get_yticklabels()}
    assert labels == {"logistic-regression, tuned": "bold", "logistic-regression": "normal"}
    every, chosen = (dots.get_offsets().tolist() for dots in of_search.collections)
    assert every == [[number, trial.loss] for number, trial in enumerate(tuned, 1)]
    assert chosen == [[2, tuned[1].loss]]
    (line,) = of_search.lines
    assert list(line.get_ydata()) == [tuned[0].loss, tuned[1].loss, tuned[1].loss]
