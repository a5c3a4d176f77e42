"""The command `placement` does what its help says; its errors are one line each."""

import contextlib
import csv
import io
import itertools
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from placement.cli import main
from predictor.process import free_ports
from tests.support.paths import PLACEMENT
from tests.support.sklearn_reference import SklearnReference
from tests.support.waiting import wait_until_sync
from training.candidates import SAMPLE
from training.generator import generate
from transformer.bundle.format import load_bundle

TIMEOUT_S = 120
PROTOCOLS = ["v1", "v2", "grpc"]


@dataclass(frozen=True)
class Done:
    """The result of a command."""

    returncode: int
    stdout: str
    stderr: str


def placement(*arguments: object, stdin: str = "") -> Done:
    """Run the command in this process, which is faster."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        status = main([*map(str, arguments)])
    return Done(status, stdout.getvalue(), stderr.getvalue())


def placement_process(*arguments: object, stdin: str = "", env: dict[str, str] | None = None) -> Done:
    """Run the command as a process."""
    done = subprocess.run(
        [PLACEMENT, *map(str, arguments)],
        input=stdin,
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def refusal(done: Done, command: str) -> str:
    """Return the error of a failed command, without its name and progress."""
    assert done.returncode == 1
    progress, found, message = done.stderr.partition(f"placement {command}: ")
    assert found, done.stderr
    assert all(re.match(r" *[0-9.]+ s  ", line) for line in progress.splitlines()), done.stderr
    assert "Traceback" not in message
    return message.removesuffix("\n")


# Help


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["train", "up", "predict"]),
        (["train"], ["--data", "--rows", "--seed", "--storage", "--version", "--previous", "--estimator"]),
        (["up"], ["--file", "--model", "--port", "--grpc-port", "--once", "--run"]),
        (["predict"], ["--url", "--protocol", "{v1,v2,grpc}", "FILE.csv"]),
    ],
    ids=["placement", "train", "up", "predict"],
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
    done = placement_process("--help")
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


# train


def test_train_writes_a_version_and_prints_its_uri_and_metrics(tmp_path):
    done = placement_process(
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

    done = placement(
        "train",
        *("--rows", 100, "--seed", 1, "--storage", tmp_path, "--estimator", "forest-50"),
        *("--previous", message["uri"]),
    )
    assert done.returncode == 0, done.stderr
    table = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert table["uri"] == str(tmp_path / "placement/v2")
    assert {"report", "model", "accuracy", "roc_auc", "brier"} <= set(table)
    assert [one.version for one in load_bundle(table["uri"]).versions] == ["v2", "v1"]


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
    message = refusal(placement("train", "--storage", storage, "--version", "v1"), "train")
    assert message == f"{trained_bundle}: this version exists and cannot be overwritten; choose another name"
    assert {path: path.read_bytes() for path in trained_bundle.iterdir()} == before


def test_train_names_the_row_and_column_of_a_wrong_value(tmp_path):
    file = labelled_csv(tmp_path / "broken.csv", change=(41, "ssc_p", "710"))
    message = refusal(placement("train", "--storage", tmp_path, "--data", file), "train")
    assert message == f"{file}: row 42 (line 43), column 'ssc_p': must be 0 to 100, got '710'"
    assert not (tmp_path / "placement").exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
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
    assert error in refusal(placement("train", *arguments.split()), "train")
    assert list(tmp_path.rglob("*.joblib")) == []


# up


class Up:
    """`placement up` as a process, and its output."""

    def __init__(self, model: Path, directory: Path, *arguments: object) -> None:
        self.port, self.grpc_port = free_ports(2)
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self._stderr: IO[bytes] = (directory / "stderr").open("wb")
        self.process = subprocess.Popen(
            [
                *map(str, (PLACEMENT, "up", "--model", model, "--run", directory)),
                *map(str, ("--port", self.port, "--grpc-port", self.grpc_port, *arguments)),
            ],
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )

    def wait_for(self, what: str) -> None:
        """Wait until it has printed a text."""

        def printed() -> bool:
            assert self.process.poll() is None, self.output()
            return what in self.output()

        wait_until_sync(printed, timeout_s=TIMEOUT_S)

    def output(self) -> str:
        return Path(self._stderr.name).read_text()

    def family(self) -> list[psutil.Process]:
        me = psutil.Process(self.process.pid)
        return [me, *me.children(recursive=True)]

    def __enter__(self) -> "Up":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(TIMEOUT_S)
        self.process.kill()
        self.process.communicate()
        self._stderr.close()


@pytest.fixture(scope="module")
def up(trained_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with Up(trained_bundle, tmp_path_factory.mktemp("up")) as running:
        running.wait_for("ready")
        yield running


def test_up_once_ends_after_the_answer_to_the_sample(trained_bundle, sklearn_reference, tmp_path):
    with Up(trained_bundle, tmp_path / "up", "--once", "--json") as up:
        output, _ = up.process.communicate(timeout=TIMEOUT_S)
        assert up.process.returncode == 0, up.output()
        assert up.output().splitlines()[-1].endswith(" s  stopped")
    message = json.loads(output)
    assert message["url"] == f"http://127.0.0.1:{up.port}"
    assert message["grpc"] == f"127.0.0.1:{up.grpc_port}"
    assert message["version"] == "v1"
    assert message["candidate"] == SAMPLE
    assert message["prediction"]["placement_probability"] == pytest.approx(
        sklearn_reference.probabilities([SAMPLE])[0]
    )


def test_ctrl_c_stops_every_child_of_up(trained_bundle, tmp_path):
    with Up(trained_bundle, tmp_path / "up") as up:
        up.wait_for("ready")
        family = up.family()
        assert len(family) > 4, "the model server, the transformer and the guard of each"
        up.process.send_signal(signal.SIGINT)
        output, _ = up.process.communicate(timeout=TIMEOUT_S)
        assert up.process.returncode == 0, up.output()
        assert psutil.wait_procs(family, timeout=10)[1] == []
        assert "Traceback" not in up.output()
    # The output while it was ready has a curl command to copy.
    assert f"ready      http://127.0.0.1:{up.port}  (gRPC 127.0.0.1:{up.grpc_port})" in output
    assert f"curl http://127.0.0.1:{up.port}/v1/models/placement:predict -d " in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_before_up_is_ready_stops_every_child(number, trained_bundle, tmp_path):
    with Up(trained_bundle, tmp_path / "up") as up:
        up.wait_for("is loading placement")
        family = up.family()
        up.process.send_signal(number)
        assert up.process.wait(TIMEOUT_S) == 0, up.output()
        assert psutil.wait_procs(family, timeout=10)[1] == []
        assert "Traceback" not in up.output()


def test_the_printed_curl_command_works(trained_bundle, up, sklearn_reference):
    lines: list[str] = []
    assert up.process.stdout is not None
    while not lines or "curl" not in lines[-1]:
        lines.append(up.process.stdout.readline())
    done = subprocess.run(lines[-1], shell=True, capture_output=True, text=True, check=True)
    (prediction,) = json.loads(done.stdout)["predictions"]
    assert prediction["placement_probability"] == pytest.approx(sklearn_reference.probabilities([SAMPLE])[0])


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_up_reports_a_port_in_use(option, trained_bundle, tmp_path):
    other = "--port" if option == "--grpc-port" else "--grpc-port"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        done = placement_process(
            *("up", "--model", trained_bundle, "--run", tmp_path),
            *(option, number, other, *free_ports(1)),
        )
    assert refusal(done, "up") == f"port {number} is in use; free it, or choose another with {option}"


def test_up_refuses_the_directory_of_a_running_service(trained_bundle, up):
    control = (up.directory / "control.json").read_text()
    done = placement_process(
        *("up", "--model", trained_bundle, "--run", up.directory),
        *itertools.chain(*zip(("--port", "--grpc-port"), free_ports(2), strict=True)),
    )
    message = refusal(done, "up")
    assert message == (
        f"{up.directory}: a local service runs here; stop it, or name another directory with --run"
    )
    assert (up.directory / "control.json").read_text() == control


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["-f", "missing.yaml"], "missing.yaml: No such file or directory"),
        (["--model", "models/none"], "models/none: no version here, bundle.json is missing; "),
    ],
    ids=["spec", "model"],
)
def test_up_reports_a_missing_spec_or_model(arguments, error, tmp_path):
    port, grpc_port = free_ports(2)
    done = placement_process("up", *arguments, "--port", port, "--grpc-port", grpc_port, "--run", tmp_path)
    assert refusal(done, "up").startswith(error)


# rollout


def test_ctrl_c_during_a_rollout_restores_the_previous_state(trained_bundle, up, tmp_path):
    """The service finishes the current step, and the rollout then undoes it."""
    storage = ("--storage", tmp_path, "--version", "v2", "--estimator", "forest-50", "--rows", 100)
    assert placement("train", *storage, "--previous", trained_bundle).returncode == 0
    family = {process.pid for process in up.family()}
    before = placement("status", "--run", up.directory, "--json")
    rolling = subprocess.Popen(
        [PLACEMENT, "rollout", tmp_path / "placement" / "v2", "--run", up.directory],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert rolling.stderr is not None
    message = ""
    while "starting with placement v2" not in message:
        message += rolling.stderr.readline()
    rolling.send_signal(signal.SIGINT)
    message += rolling.communicate(timeout=TIMEOUT_S)[1]
    assert rolling.returncode == 130, message
    assert message.splitlines()[-1].endswith("the previous state is restored"), message
    after = placement("status", "--run", up.directory, "--json")
    uris = ("transformer_uri", "predictor_uri", "previous_uri", "canary")
    assert [json.loads(after.stdout)[name] for name in uris] == [
        json.loads(before.stdout)[name] for name in uris
    ]
    assert len(up.family()) == len(family)
    assert "Traceback" not in message + up.output()


# predict


def at(up: Up, protocol: str) -> tuple[str, ...]:
    """Return the arguments of `placement predict` for the service."""
    url = f"127.0.0.1:{up.grpc_port}" if protocol == "grpc" else f"http://127.0.0.1:{up.port}"
    return ("predict", "--url", url, "--protocol", protocol)


def ask(up: Up, protocol: str, *arguments: object, stdin: str = "") -> Done:
    return placement(*at(up, protocol), *arguments, stdin=stdin)


def answers(done: Done) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no progress where nobody watches"
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
        answers(placement_process(*at(up, protocol), "--json", unlabelled())), candidates, sklearn_reference
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


def test_predict_prints_an_empty_list_for_no_candidates(up):
    assert answers(ask(up, "v1", "--json", stdin="[]")) == []


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
    message = refusal(ask(up, protocol, file), "predict")
    assert message.startswith(f"{file}: row 700 (line 701), column 'ssc_p': {problem}")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_predict_reports_that_no_service_answers(protocol, tmp_path):
    file = tmp_path / "candidate.json"
    file.write_text(json.dumps(SAMPLE))
    url = "127.0.0.1:1" if protocol == "grpc" else "http://127.0.0.1:1"
    done = placement("predict", "--url", url, "--protocol", protocol, file)
    assert refusal(done, "predict").startswith(f"{url} does not answer")


def test_predict_reports_that_another_service_answers(up):
    done = ask(up, "v1", "--model", "salary", stdin="[]")
    assert refusal(done, "predict") == "Model with name salary does not exist."
    done = placement("predict", "--url", f"http://127.0.0.1:{up.grpc_port}", stdin="[]")
    assert f"http://127.0.0.1:{up.grpc_port}" in refusal(done, "predict")
    done = placement("predict", "--url", f"127.0.0.1:{up.port}", "--protocol", "grpc", stdin="[]")
    assert f"127.0.0.1:{up.port}" in refusal(done, "predict")


UNREADABLE = [
    pytest.param("missing.json", None, "missing.json: No such file or directory", id="missing"),
    pytest.param("missing.csv", None, "missing.csv: No such file or directory", id="missing CSV"),
    pytest.param(".", None, ".: Is a directory", id="a directory"),
    pytest.param("x.json", b"{", "x.json: is not JSON", id="not JSON"),
    pytest.param("x.json", b"\xff", "x.json: ", id="not text"),
    pytest.param("x.json", b"3", "x.json: must be a candidate, a list of them, or a V1 request", id="number"),
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
    assert refusal(ask(up, "v1", file), "predict").startswith(error)


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
    done = placement_process(*at(up, "v1"), "--json", stdin=json.dumps(SAMPLE), env=env)
    assert len(answers(done)) == 1
