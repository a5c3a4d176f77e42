"""`placement predict` asks a running service over every protocol, and its errors are one line each."""

import csv
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import PLACEMENT
from tests.support.placement_command import (
    CommandResult,
    PlacementUp,
    error_of,
    run_placement,
    run_placement_process,
)
from tests.support.sklearn_reference import SklearnReference
from training.candidates import SAMPLE
from training.generator import generate

PROTOCOLS = ["v1", "v2", "grpc"]


def at(up: PlacementUp, protocol: str) -> tuple[str, ...]:
    """Return the arguments of `placement predict` for the service."""
    url = f"127.0.0.1:{up.grpc_port}" if protocol == "grpc" else f"http://127.0.0.1:{up.port}"
    return ("predict", "--url", url, "--protocol", protocol)


def ask(up: PlacementUp, protocol: str, *arguments: object, stdin: str = "") -> CommandResult:
    return run_placement(*at(up, protocol), *arguments, stdin=stdin)


def answers(done: CommandResult) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if ": passed over: " not in line]
    assert lines == [], "no progress where nobody watches"
    return json.loads(done.stdout)


def check(
    predictions: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], sklearn_reference: SklearnReference
) -> None:
    expected = sklearn_reference.probabilities(rows)
    assert [one["placement_probability"] for one in predictions] == pytest.approx(expected, abs=1e-12)
    assert [one["placement"] for one in predictions] == [
        p >= sklearn_reference.bundle.threshold for p in expected
    ]
    assert {one["model_version"] for one in predictions} == {"v1"}


@pytest.fixture(scope="module")
def candidates() -> list[dict[str, Any]]:
    return generate(1500, seed=5).candidates


@pytest.fixture
def unlabelled(tmp_path, candidates):
    """Write candidates as CSV like the real test data, with a column of row numbers first."""

    def write(rows: Sequence[dict[str, Any]] = candidates, encoding: str = "utf-8") -> Path:
        path = tmp_path / "candidates.csv"
        with path.open("w", newline="", encoding=encoding) as file:
            writer = csv.DictWriter(file, ["sl_no", *rows[0]])
            writer.writeheader()
            writer.writerows({"sl_no": number, **row} for number, row in enumerate(rows))
        return path

    return write


FORMS = {
    "a candidate": lambda rows: rows[0],
    "a list": lambda rows: rows,
    "a V1 request": lambda rows: {"instances": rows},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_predict_reads_each_form_of_json(form, protocol, up, sklearn_reference, candidates, tmp_path):
    rows = candidates[:3]
    content = form(rows)
    file = tmp_path / "candidates.json"
    file.write_text(json.dumps(content))
    check(
        answers(ask(up, protocol, "--json", file)),
        rows[:1] if content is rows[0] else rows,
        sklearn_reference,
    )


def test_predict_reads_standard_input(up, sklearn_reference, candidates):
    for arguments in ([], ["-"]):
        done = ask(up, "v1", "--json", *arguments, stdin=json.dumps(candidates[:2]))
        check(answers(done), candidates[:2], sklearn_reference)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_predict_reads_a_large_csv_in_order(protocol, up, sklearn_reference, candidates, unlabelled):
    check(
        answers(run_placement_process(*at(up, protocol), "--json", unlabelled())),
        candidates,
        sklearn_reference,
    )


def test_predict_reads_a_csv_that_a_spreadsheet_saved(up, sklearn_reference, candidates, unlabelled):
    file = unlabelled(candidates[:2], encoding="utf-8-sig")
    check(answers(ask(up, "v1", "--json", file)), candidates[:2], sklearn_reference)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_predict_prints_a_table(protocol, up, sklearn_reference, candidates, unlabelled):
    rows = candidates[:3]
    done = ask(up, protocol, unlabelled(rows))
    assert done.returncode == 0, done.stderr
    header, *lines = [line.split() for line in done.stdout.splitlines()]
    assert header == ["#", "placement", "placement_probability", "version"]
    assert lines == [
        [str(number), "yes" if p >= sklearn_reference.bundle.threshold else "no", f"{p:.4f}", "v1"]
        for number, p in enumerate(sklearn_reference.probabilities(rows), start=1)
    ]


def test_predict_refuses_no_rows_as_the_service_does(up):
    done = ask(up, "v1", "--json", stdin="[]")
    assert error_of(done, "predict") == "standard input: must have at least one row, got none"
    assert done.stdout == ""


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (710.5, "must be 0 to 100, got 710.5"),
        ("high", "must be a finite number, got 'high'"),
        ("", "is required"),
    ],
)
def test_predict_reports_a_bad_value_by_its_place_in_the_file(
    value, problem, protocol, up, candidates, unlabelled
):
    file = unlabelled([*candidates[:699], {**candidates[699], "ssc_p": value}, *candidates[700:]])
    message = error_of(ask(up, protocol, file), "predict")
    assert message.startswith(f"{file}: row 700 (line 701), column 'ssc_p': {problem}")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_predict_reports_that_no_service_answers(protocol, tmp_path):
    file = tmp_path / "candidate.json"
    file.write_text(json.dumps(SAMPLE))
    url = "127.0.0.1:1" if protocol == "grpc" else "http://127.0.0.1:1"
    done = run_placement("predict", "--url", url, "--protocol", protocol, file)
    assert error_of(done, "predict").startswith(f"{url} does not answer")


def test_predict_reports_that_another_service_answers(up):
    done = ask(up, "v1", "--model", "salary", stdin="[]")
    assert error_of(done, "predict") == "Model with name salary does not exist. Models here: placement."
    done = run_placement("predict", "--url", f"http://127.0.0.1:{up.grpc_port}", stdin="[]")
    assert f"http://127.0.0.1:{up.grpc_port}" in error_of(done, "predict")
    done = run_placement("predict", "--url", f"127.0.0.1:{up.port}", "--protocol", "grpc", stdin="[]")
    assert f"127.0.0.1:{up.port}" in error_of(done, "predict")


UNREADABLE = [
    pytest.param("missing.json", None, "missing.json: No such file or directory", id="missing"),
    pytest.param("missing.csv", None, "missing.csv: No such file or directory", id="missing CSV"),
    pytest.param(".", None, ".: Is a directory", id="a directory"),
    pytest.param("x.json", b"{", "x.json: is not JSON", id="not JSON"),
    pytest.param("x.json", b"\xff", "x.json: ", id="not text"),
    pytest.param(
        "x.json",
        b"3",
        "x.json: must be an object of fields and values, a list of them, JSON lines",
        id="number",
    ),
    pytest.param("x.json", b"[3]", "x.json: ", id="a list of a number"),
    pytest.param("x.csv", b"gender,ssc_p\nM,1\n", "x.csv: ", id="too few columns"),
    pytest.param("x.csv", b"", "x.csv: ", id="empty CSV"),
    pytest.param("x.csv", b"gender\n\xff\n", "x.csv: ", id="CSV that is not text"),
    pytest.param("x.csv", b"gender\n\0\n", "x.csv: ", id="CSV with zeros"),
    pytest.param("x.csv", b'gender\n"' + b"x" * 200_000, "x.csv: ", id="CSV with an open quote"),
]


@pytest.mark.parametrize(("file", "content", "error"), UNREADABLE)
def test_predict_reports_a_file_that_it_cannot_read(file, content, error, up, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / file).write_bytes(content)
    assert error_of(ask(up, "v1", file), "predict").startswith(error)


def test_predict_ends_quietly_when_its_output_is_closed(up, unlabelled):
    command = f"{PLACEMENT} predict --url http://127.0.0.1:{up.port} {unlabelled()}"
    done = subprocess.run(f"{command} | head -1", shell=True, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


@pytest.mark.parametrize("protocol", ["v1", "grpc"])
def test_predict_ignores_proxy_settings_of_the_environment(
    protocol, up, candidates, sklearn_reference, monkeypatch
):
    """The service is on this machine, so a proxy could not reach it."""
    for variable in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
        monkeypatch.setenv(variable.upper(), "http://127.0.0.1:1")
    for variable in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(variable, raising=False)
    check(
        answers(ask(up, protocol, "--json", stdin=json.dumps(candidates[:1]))),
        candidates[:1],
        sklearn_reference,
    )


def test_the_command_works_with_an_empty_environment(up):
    env = {"PATH": os.environ["PATH"]}
    done = run_placement_process(*at(up, "v1"), "--json", stdin=json.dumps(SAMPLE), env=env)
    assert len(answers(done)) == 1
