"""A new version and the one that serves are evaluated on the same held-out candidates."""

import dataclasses
import random
import re
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, mean_absolute_error, roc_auc_score, roc_curve

from pipelines.evaluation import ROC_POINTS, evaluate, roc
from pipelines.gate import Bounds, reasons
from pipelines.held_out import split
from pipelines.publish import publish_version
from pipelines.step import PipelineError
from pipelines.summary import Comparison, Summary
from placement.drift import PSI_LIMIT
from storage.bundles import publish, read_bundle
from storage.errors import StorageError, VersionExistsError
from tests.support.bundle_copies import MODEL, bundle_copy
from tests.support.kinds import NAME, QUESTIONS, Trained, dataset_of
from training.candidates import Candidate, Task
from training.data import Dataset
from training.metric_names import METRICS
from training.train import train
from transformer.bundle.signature import Category, Number, Signature

#: Enough rows for drift and groups to count.
ROWS = 1000
BINARY = "1 and 0"


def changed(parts: Iterable[Dataset], change: Callable[[Candidate], Candidate]) -> tuple[Dataset, Dataset]:
    """Return the training and the held-out part with each candidate changed."""
    training, held_out = (
        dataclasses.replace(part, candidates=[change(one) for one in part.candidates]) for part in parts
    )
    return training, held_out


def comparison_of(summary: Summary) -> Comparison:
    assert summary.comparison is not None
    return summary.comparison


def trained(dataset, storage, question):
    return train(dataset, storage=storage, name=NAME, estimator=QUESTIONS[question].estimator)


@pytest.fixture(scope="module", params=[BINARY, "three texts", "booleans without probabilities", "a number"])
def served(request, tmp_path_factory):
    """The parts of a dataset, and a version that was fitted on the training part."""
    question = request.param
    parts = split(dataset_of(QUESTIONS[question], ROWS), 0.3)
    return question, *parts, trained(parts[0], tmp_path_factory.mktemp("models"), question)


def test_the_metrics_are_those_of_scikit_learn_on_the_held_out_candidates(served, tmp_path):
    question, training, held_out, version = served
    evaluation, summary = evaluate(version.uri, training, held_out, "", ["town"])
    model = trained(training, tmp_path, question)
    other = Trained(tmp_path / NAME / "v1", read_bundle(model.uri), training, tmp_path)
    predicted = other.model.predict(other.frame(held_out.candidates))
    if question == "a number":
        assert summary.metrics["mae"] == pytest.approx(mean_absolute_error(held_out.labels, predicted))
        assert {one.accuracy for one in summary.groups} == {None}
    else:
        assert summary.metrics["accuracy"] == pytest.approx(accuracy_score(held_out.labels, predicted))
        right = np.array([one == label for one, label in zip(predicted, held_out.labels, strict=True)])
        for group in summary.groups:
            rows = np.array([one["town"] == group.group for one in held_out.candidates])
            assert (group.rows, group.accuracy) == (rows.sum(), pytest.approx(right[rows].mean()))
    assert [one.group for one in summary.groups] == ["Ulm", "Köln", "Bonn"]
    assert summary.comparison is None
    assert set(summary.metrics) <= set(METRICS)
    if question == BINARY:
        probabilities = evaluation.positive_probabilities
        assert summary.metrics["roc_auc"] == pytest.approx(roc_auc_score(evaluation.truth, probabilities))
        curve = roc(evaluation)
        assert curve is not None
        assert len(curve.thresholds) <= ROC_POINTS
        assert max(curve.thresholds) <= 1
        exact = roc_curve(evaluation.truth, probabilities)
        assert set(zip(curve.false_rates, curve.true_rates, strict=True)) <= set(zip(*exact[:2], strict=True))
        chosen = [one.selection_rate for one in summary.groups]
        towns = np.array([one["town"] for one in held_out.candidates])
        assert chosen == [
            pytest.approx((predicted == 0)[towns == town].mean()) for town in ("Ulm", "Köln", "Bonn")
        ]
    else:
        assert roc(evaluation) is None


def test_a_version_passes_beside_itself_and_its_summary_is_read_as_written(served, tmp_path):
    _, training, held_out, version = served
    _, summary = evaluate(version.uri, training, held_out, version.uri, [])
    comparison = comparison_of(summary)
    assert comparison.metrics == comparison.serving_metrics == summary.metrics
    assert comparison.rows == summary.rows == len(held_out.labels)
    assert comparison.psi_rows == ROWS
    assert reasons(summary) == []
    (line,) = summary.text().splitlines()
    assert line.startswith(f"v1 on {len(held_out.labels)} held-out rows: ")
    assert [one.split()[0] for one in line.partition(": ")[2].split(", ")] == [
        name for name in METRICS if name in summary.metrics
    ]
    (tmp_path / "summary").write_text(summary.model_dump_json())
    assert Summary.read(tmp_path / "summary") == summary


def test_a_version_that_learned_nothing_does_not_pass(served, tmp_path):
    question, training, held_out, version = served
    labels = random.Random(0).sample(list(training.labels), len(training.labels))
    poor = trained(dataclasses.replace(training, labels=labels), tmp_path, question)
    _, summary = evaluate(poor.uri, training, held_out, version.uri, [])
    found = reasons(summary)
    assert any(one.startswith("r2 is" if question == "a number" else "accuracy is") for one in found), found


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    parts = split(dataset_of(QUESTIONS[BINARY], ROWS), 0.3)
    return *parts, trained(parts[0], tmp_path_factory.mktemp("models"), BINARY)


def test_drift_is_that_of_the_new_candidates_against_the_version_that_serves(binary):
    training, held_out, version = binary
    older = changed((training, held_out), lambda one: {**one, "age": float(str(one["age"])) + 3})
    _, summary = evaluate(version.uri, *older, version.uri, [])
    psi = comparison_of(summary).psi
    assert psi.keys() == {"size", "age", "town"}
    assert psi["age"] > PSI_LIMIT > max(psi["size"], psi["town"])
    assert "age has drifted from the data of v1" in "\n".join(reasons(summary))


def test_an_unknown_category_counts_as_drift_and_is_not_compared(binary, tmp_path):
    """The version that serves cannot answer such candidates; the new one is compared on the others."""
    training, held_out, version = binary
    task = Task.model_validate(
        {
            **training.task.model_dump(),
            "signature": Signature(
                fields=(
                    Number(name="size", minimum=0, maximum=10),
                    Number(name="age", default=3.0),
                    Category(name="town", categories=("Ulm", "Köln", "Bonn", "Trier")),
                )
            ),
        }
    )
    wider = [dataclasses.replace(part, task=task) for part in (training, held_out)]
    moved = changed(wider, lambda one: {**one, "town": "Trier"} if one["town"] == "Ulm" else one)
    new = trained(moved[0], tmp_path, BINARY)
    _, summary = evaluate(new.uri, *moved, version.uri, [])
    known = sum(one["town"] != "Ulm" for one in held_out.candidates)
    assert comparison_of(summary).rows == known < summary.rows
    assert comparison_of(summary).psi["town"] > PSI_LIMIT
    lines = summary.model_copy(update={"version": "v2"}).text().splitlines()
    assert [line.split(" held-out rows: accuracy ")[0] for line in lines] == [
        f"v2 on {summary.rows}", f"v2 on {known}", f"v1 on {known}",
    ]  # fmt: skip
    all_moved = changed(wider, lambda one: {**one, "town": "Trier"})
    _, summary = evaluate(new.uri, *all_moved, version.uri, [])
    assert (comparison_of(summary).rows, comparison_of(summary).metrics) == (0, {})
    assert "v1 accepts 0 of" in reasons(summary, Bounds(max_psi=99))[0]


def test_a_version_with_another_question_is_not_compared(binary, tmp_path):
    training, held_out, version = binary
    other = trained(dataset_of(QUESTIONS["three texts"]), tmp_path, "three texts")
    with pytest.raises(PipelineError, match="v1, which serves, answers another question than v1: multiclass"):
        evaluate(version.uri, training, held_out, other.uri, [])


def test_publishing_again_changes_nothing_and_never_replaces_another_version(binary, tmp_path):
    _, held_out, version = binary
    (tmp_path / "report").write_text("<html>")
    storage = tmp_path / "storage"
    uri = publish_version(version.uri, tmp_path / "report", str(storage))
    assert read_bundle(uri) == version.bundle
    assert (storage / NAME / "v1.html").read_text() == "<html>"
    before = {path: path.read_bytes() for path in (storage / NAME / "v1").iterdir()}
    assert publish_version(version.uri, tmp_path / "report", str(storage)) == uri
    assert {path: path.read_bytes() for path in (storage / NAME / "v1").iterdir()} == before
    other = trained(held_out, tmp_path / "other", BINARY)
    with pytest.raises(VersionExistsError):
        publish_version(other.uri, tmp_path / "report", str(storage))
    assert {path: path.read_bytes() for path in (storage / NAME / "v1").iterdir()} == before


def test_a_model_file_that_cannot_be_loaded_is_named(binary, tmp_path):
    training, held_out, version = binary
    broken = publish(bundle_copy(version.bundle, "v7"), MODEL, tmp_path)
    with pytest.raises(StorageError, match=f"^{re.escape(broken)}: cannot load the model: "):
        evaluate(version.uri, training, held_out, broken, [])
