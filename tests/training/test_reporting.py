"""A version's report compares it with the one it replaces, and can be written again."""

import csv
import re
from pathlib import Path
from typing import Any

import joblib
import pytest

from placement import cli
from storage.bundles import read_bundle
from training.candidates import PLACEMENT
from training.data import Dataset
from training.encoding import encode, fit_vectorizer
from training.fitting import fit
from training.generator import generate
from training.reports.comparison import ComparisonError, compare
from training.train import train
from transformer.bundle.format import MODEL_FILE

DATASET = generate(300)
FAST: dict[str, Any] = {"estimator": "logistic-regression"}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return train(DATASET, storage=tmp_path_factory.mktemp("models"), **FAST)


@pytest.fixture(scope="module")
def second(first):
    """A version with another threshold, which moves rows to the other side."""
    storage = Path(first.uri).parents[1]
    return train(DATASET, storage=storage, previous=first.uri, threshold="recall=0.995", **FAST)


def probabilities(trained):
    features = encode(fit_vectorizer(DATASET.task.signature), DATASET.candidates)
    return joblib.load(Path(trained.uri) / MODEL_FILE).predict_proba(features)[:, 1]


def test_the_comparison_lists_the_rows_that_change_side(first, second):
    before, now = probabilities(first) >= 0.5, probabilities(second) >= second.bundle.threshold
    changed = [row for row in range(300) if before[row] != now[row]]
    assert changed
    comparison = second.comparison
    assert [change.row for change in comparison.changes] == [row + 1 for row in changed]
    for change, row in zip(comparison.changes, changed, strict=True):
        assert change.now == now[row]
        assert change.is_right == (now[row] == (DATASET.labels[row] == PLACEMENT.positive_class))
    assert str(comparison) == f"{len(changed)} of 300 rows change side against v1"


def test_the_report_shows_the_metrics_of_both_and_the_rows(first, second):
    html = Path(second.report).read_text()
    assert "What changes against v1?" in html
    assert "was trained on the same data" in html
    for name in ("accuracy", "recall"):
        before, now = first.bundle.metrics[name], second.bundle.metrics[name]
        row = f"{name}</th><td>{before:.4f}</td><td>{now:.4f}</td><td>{now - before:+.4f}</td>"
        assert row in html
    listed = [int(row) for text in re.findall(r": rows ([\d, ]+)", html) for row in text.split(", ")]
    assert sorted(listed) == [change.row for change in second.comparison.changes]
    assert "What changes against" not in Path(first.report).read_text()


def test_rows_that_the_earlier_version_does_not_accept_are_not_compared(first):
    candidates = [dict(candidate) for candidate in DATASET.candidates]
    candidates[4]["mba_p"] = 150.0
    wider = PLACEMENT.signature.model_copy(
        update={
            "fields": tuple(
                field.model_copy(update={"maximum": 200.0}) if field.name == "mba_p" else field
                for field in PLACEMENT.signature.fields
            )
        }
    )
    task = PLACEMENT.model_copy(update={"signature": wider})
    fitted = fit(Dataset(task, candidates, DATASET.labels, "own", "0" * 64), **FAST)
    assert compare(first.uri, fitted).rows == 299


def test_a_version_that_cannot_be_loaded_is_not_compared(first, tmp_path):
    fitted = fit(DATASET, **FAST)
    with pytest.raises(ComparisonError, match="no version here"):
        compare(tmp_path / "none", fitted)


def test_the_rule_and_its_threshold_are_in_the_bundle_and_in_the_report(second):
    bundle = read_bundle(second.uri)
    assert bundle.recipe is not None
    assert (bundle.recipe.threshold, bundle.threshold) == ("recall=0.995", second.bundle.threshold)
    assert bundle.metrics["recall"] >= 0.995
    assert (
        f"predicted from {bundle.threshold:.1%} on, the choice of recall=0.995"
        in Path(second.report).read_text()
    )


def _without_times(html):
    return re.sub(r"[\d.]+ ms for", "", html)


def test_a_report_is_written_again_from_the_generated_data(second, capsys):
    report = Path(second.report)
    before = report.read_text()
    report.unlink()
    assert cli.main(["report", second.uri]) == 0
    assert capsys.readouterr().out == f"report    {report}\n"
    assert _without_times(report.read_text()) == _without_times(before)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Own data in the working directory, and a version that was trained on them."""
    monkeypatch.chdir(tmp_path)
    with Path("own.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*PLACEMENT.signature.names, "status"])
        writer.writerows(
            [*c.values(), label] for c, label in zip(DATASET.candidates, DATASET.labels, strict=True)
        )
    arguments = ["--data", "own.csv", "--estimator", "logistic-regression", "--row_name", "person"]
    assert cli.main(["train", *arguments]) == 0
    return Path("models/placement/v1.html")


def test_a_report_says_the_tasks_word_and_is_written_again_from_own_data(own, capsys):
    before = own.read_text()
    assert "candidate" not in before
    assert "300 persons" in before
    own.unlink()
    Path("own.csv").rename("moved.csv")
    assert cli.main(["report", "models/placement/v1"]) == 1
    assert capsys.readouterr().err.endswith(
        "placement report: models/placement/v1: needs its training data, own.csv: name the file with --data\n"
    )
    assert cli.main(["report", "models/placement/v1", "--data", "moved.csv"]) == 0
    assert _without_times(own.read_text()) == _without_times(before)
    content = Path("moved.csv").read_text()
    Path("moved.csv").write_text(content.rstrip().rpartition("\n")[0])
    assert cli.main(["report", "models/placement/v1", "--data", "moved.csv"]) == 1
    assert "was trained on other data: SHA-256 is " in capsys.readouterr().err


def test_a_report_that_cannot_be_written_leaves_a_version_and_says_how_to_write_it(tmp_path):
    (tmp_path / "placement/v1.html/in the way").mkdir(parents=True)
    lines: list[str] = []
    trained = train(DATASET, storage=tmp_path, progress=lines.append, **FAST)
    assert (trained.report, read_bundle(trained.uri)) == (None, trained.bundle)
    assert lines[-1].startswith("WARNING: the report was not written: ")
    assert lines[-1].endswith(f"; once that is solved, run `placement report {trained.uri}`")


def test_a_bundle_of_an_earlier_release_says_that_it_has_no_recipe(first, tmp_path, capsys):
    bundle = first.bundle.model_copy(update={"recipe": None})
    place = tmp_path / "v1"
    place.mkdir()
    (place / "bundle.json").write_text(bundle.to_json())
    assert cli.main(["report", str(place)]) == 1
    assert capsys.readouterr().err.endswith(
        f"{place}: does not say how it was trained; train a new version\n"
    )


# placement versions


def test_versions_lists_metrics_and_thresholds(first, second, capsys, tmp_path):
    storage = Path(first.uri).parents[1]
    assert cli.main(["versions", "--storage", str(storage), "--run", str(tmp_path)]) == 0
    header, one, two, *_ = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["version", "created", "rows", "accuracy"]
    for line, trained in ((one, first), (two, second)):
        assert line.split()[0] == trained.bundle.version
        assert f"{trained.bundle.metrics['recall']:.4f}" in line
    assert cli.main(["versions", "--storage", str(storage), "--name", "churn"]) == 1
    assert capsys.readouterr().err == (
        f"placement versions: {storage}/churn: no version here; name another model with --name: placement\n"
    )
