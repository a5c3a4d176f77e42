"""`placement --help` and `placement train` do what their help says; errors are one line each."""

import csv
import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest

from placement.cli import COMMANDS, main
from placement.status_text import status_lines
from tests.support.placement_command import error_of, run_placement, run_placement_process
from training.estimators import ESTIMATORS
from training.generator import generate
from transformer.bundle.format import load_bundle

# Help


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["train", "up", "predict"]),
        (
            ["train"],
            [
                "--data",
                "--rows",
                "--seed",
                "--storage",
                "--version",
                "--previous",
                "--estimator",
                "--serving-form",
            ],
        ),
        (["import"], ["--vectorizer", "--sample", "--label", "--task", "--trust", "--previous"]),
        (["up"], ["--file", "--model", "--port", "--grpc-port", "--once", "--run"]),
        (["predict"], ["--url", "--protocol", "{v1,v2,grpc}", "FILE.csv"]),
        (["explain"], ["--url", "--html", "--header", "--decimal"]),
    ],
    ids=["placement", "train", "import", "up", "predict", "explain"],
)
def test_help_names_commands_and_options(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert [word for word in words if word not in text] == []
    if arguments:
        assert "--json" in text


def test_the_command_is_installed():
    done = run_placement_process("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: placement ")


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["up", "--port", "http"], ["predict", "--protocol", "v3"]]
)
def test_a_wrong_command_line_exits_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: placement")


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"placement {version('placement')}\n"


def test_the_help_of_train_lists_the_estimators(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"auto, or one of {', '.join(ESTIMATORS)} (default: auto)" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_names_each_default_once(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert re.findall(r"\(default: [^)]*\) \(default: [^)]*\)|default: None", text) == []


def test_an_argument_of_the_transformer_is_explained(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["up", "--enable_docs_url=true"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "placement: error: unrecognized arguments: --enable_docs_url=true; arguments of the transformer go "
        "after --: `placement up -- --enable_docs_url=true`"
    )


def test_a_bundle_without_its_option_is_explained(tmp_path):
    done = run_placement("up", "models/placement/v2", "--run", tmp_path)
    assert error_of(done, "up") == (
        "models/placement/v2: is no argument of the transformer; name a bundle with --model"
    )


# status


def test_the_status_shows_restarts_and_last_words():
    process = {
        "version": "v1",
        "canary": False,
        "ready": True,
        "restarts": 0,
        "last_end": None,
        "log": "a.log",
    }
    end = {"at": "2026-01-02T03:04:05+00:00", "why": "ended with status 1: KeyError: 110"}
    ended = {"ready": False, "restarts": 4, "last_end": end, "log": "b.log"}
    content = {
        "transformer_uri": "models/placement/v1",
        "predictor_uri": "models/placement/v1",
        "previous_uri": None,
        "collocated": False,
        "canary": {"uri": "models/placement/v2", "percent": 10},
        "connections": [],
        "connections_unknown": None,
        "conditions": [],
        "processes": [
            {**process, "component": "transformer"},
            {**process, "component": "predictor", **ended},
            {**process, "component": "transformer", "canary": True},
            {**process, "component": "predictor", "canary": True, "restarts": 1},
        ],
    }
    assert list(status_lines(content)) == [
        "transformer  models/placement/v1",
        "predictor    models/placement/v1",
        "             not ready, restarts: 4",
        "             at 03:04:05 it ended with status 1: KeyError: 110",
        "             log b.log",
        "canary       models/placement/v2, 10 % of the traffic",
        "             predictor: ready, restarts: 1",
    ]


# train


def test_train_writes_a_version_and_prints_its_uri_and_metrics(tmp_path):
    done = run_placement_process(
        "train", "--rows", 100, "--storage", tmp_path, "--estimator", "forest-50", "--json"
    )
    assert done.returncode == 0, done.stderr
    message = json.loads(done.stdout)
    assert message["uri"] == str(tmp_path / "placement/v1")
    assert message["version"] == "v1"
    assert {"accuracy", "roc_auc", "brier"} <= set(message["metrics"])
    assert all(0 <= value <= 1 for value in message["metrics"].values())
    assert load_bundle(message["uri"]).metrics == message["metrics"]
    assert Path(message["report"]).read_text().startswith("<!doctype html>")

    done = run_placement(
        "train",
        *("--rows", 100, "--seed", 1, "--storage", tmp_path, "--estimator", "forest-50"),
        *("--previous", message["uri"]),
    )
    assert done.returncode == 0, done.stderr
    table = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert table["uri"] == str(tmp_path / "placement/v2")
    assert {"report", "model", "served", "accuracy", "roc_auc", "brier"} <= set(table)
    assert table["next"].endswith(f"placement rollout {table['uri']}")
    assert [one.version for one in load_bundle(table["uri"]).versions] == ["v2", "v1"]


def test_train_keeps_the_forest_as_it_was_fitted_if_asked(tmp_path):
    original = ("train", "--rows", 100, "--storage", tmp_path, "--serving-form", "original")
    done = run_placement(*original, "--estimator", "forest-50")
    assert done.returncode == 0, done.stderr
    assert "serving form not used: it is turned off" in done.stderr
    assert "served as" not in done.stdout
    assert load_bundle(tmp_path / "placement/v1").model.serving_form is None


def labelled_csv(path: Path, change: tuple[int, str, str] | None = None) -> Path:
    """Write a file like the real training data, with one value changed."""
    dataset = generate(60)
    rows = [{**row, "status": label} for row, label in zip(dataset.candidates, dataset.labels, strict=True)]
    if change:
        rows[change[0]][change[1]] = change[2]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_train_refuses_a_version_that_exists(trained_bundle):
    storage = trained_bundle.parent.parent
    before = {path: path.read_bytes() for path in trained_bundle.iterdir()}
    message = error_of(run_placement("train", "--storage", storage, "--version", "v1"), "train")
    assert message == f"{trained_bundle}: this version exists and cannot be overwritten; choose another name"
    assert {path: path.read_bytes() for path in trained_bundle.iterdir()} == before


def test_train_names_the_row_and_column_of_a_wrong_value(tmp_path):
    file = labelled_csv(tmp_path / "broken.csv", change=(41, "ssc_p", "710"))
    message = error_of(run_placement("train", "--storage", tmp_path, "--data", file), "train")
    assert message == f"{file}: row 42 (line 43), column 'ssc_p': must be 0 to 100, got '710'"
    assert not (tmp_path / "placement").exists()


def test_train_says_in_one_line_that_a_file_looks_like_other_data(tmp_path):
    file = tmp_path / "churn.csv"
    file.write_text("tenure,contract,gender,churn\n1,monthly,M,yes\n")
    message = error_of(run_placement("train", "--storage", tmp_path, "--data", file), "train")
    assert message == (
        f"{file}: looks like other data than placement's; draft its task first: "
        f"placement init {file} --label COLUMN"
    )


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("--threshold high", "threshold 'high' is not known, expected a number from 0 to 1, f1, recall=0.9"),
        ("--row_name 1", "row_name: must match "),
        ("--data missing.csv", "missing.csv: No such file or directory"),
        ("--estimator oracle", "oracle"),
        ("--version ../v1", "version '../v1' must be "),
        ("--storage ftp://somewhere", "ftp://somewhere"),
        ("--rows 5", "must have at least "),
        ("--rows 0", "rows must be at least 1, got 0"),
        ("--seed -1", "seed"),
        ("--previous models/none", "models/none: no version here"),
    ],
)
def test_train_reports_what_it_cannot_do(arguments, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert error in error_of(run_placement("train", *arguments.split()), "train")
    assert list(tmp_path.rglob("*.joblib")) == []
