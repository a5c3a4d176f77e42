"""The benchmark measures only systems whose answers are right, and reports what it measured."""

import json
import os
import pickle
import shutil
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from sklearn.feature_extraction import DictVectorizer

from benchmarks import plot, report
from benchmarks.answer_check import AnswerChecker, NoAnswer, Request, WrongAnswer
from benchmarks.launchers import LAUNCHERS, WORKER_COUNTS
from benchmarks.load import Load, load
from benchmarks.models import CHOSEN, FOREST, ORIGINAL_FOREST, candidates, load_served_model
from benchmarks.ratios import RATIOS
from benchmarks.results import Cell, Results
from benchmarks.run import MEASUREMENTS, SelectionError, Settings
from benchmarks.server_process import ServerError, ServerProcess
from benchmarks.system_runner import SystemRunner
from benchmarks.systems import BY_NAME, FULL_BATCHES, OURS, OURS_CHOSEN, OURS_DEFAULT, PREDICTOR, SYSTEMS
from benchmarks.workspace import Workspace
from placement.cli import main
from predictor.child import ChildProcess
from predictor.process import free_ports
from tests.support.waiting import wait_until_sync
from training.generator import generate
from training.train import train

TO = "\N{EN DASH}"
ROWS: list[Any] = [{"score": number} for number in range(20)]
RIGHT = Request("/", lambda rows: {"rows": rows}, lambda content: content["probabilities"])


class Patient(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


@contextmanager
def answering(status: int = 200, off_by: float = 0.0) -> Iterator[int]:
    """Run a server whose scores are a hundredth of each row's number."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            rows = json.loads(self.rfile.read(int(self.headers["content-length"])))["rows"]
            body = json.dumps({"probabilities": [row["score"] / 100 + off_by for row in rows]}).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = Patient(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_command_measures_systems_side_by_side(trained_bundle, tmp_path, capsys):
    page = tmp_path / "page" / "benchmarks.md"
    arguments = ["bench", "--quick", "--json", "--rounds=1", "--seconds=0.3", f"--run={tmp_path}"]
    arguments += [f"--forest={trained_bundle}", f"--chosen={trained_bundle}", f"--report={page}"]
    only = ("front-end", "noop", "encoder")
    status = main([*arguments, *(f"--only={name}" for name in only)])

    output = capsys.readouterr()
    assert status == 0, output.err
    content = json.loads(output.out)
    assert list(content["ratios"]) == [ratio.name for ratio in RATIOS]
    assert content["ratios"]["front_end_noop_64"] > 0
    assert content["ratios"]["encoder_64"] > 0
    assert content["ratios"]["bulk"] is None
    assert content["ratio_details"]["front_end_noop_64"]["mark"] == 11
    assert content["problems"] == {}
    assert content["machine"]["litserve"]
    assert {cell["system"] for cell in content["loads"]} == {"front-end", "noop"}
    assert all(cell["failed"] == 0 for cell in content["loads"])
    for system in content["systems"].values():
        assert system["ready_s"]["median"] > 0
        assert system["memory_mb"]["median"] > 0
    assert "| ours → stub predictor |" in page.read_text()
    ET.fromstring(page.with_suffix(".svg").read_text())
    assert "round 1 of 1: front-end" in output.err


def test_the_peers_with_a_forest_in_process_answer_as_scikit_learn_does(forest, tmp_path, capsys):
    arguments = ["bench", "--quick", "--json", "--rounds=1", "--seconds=0.3", f"--run={tmp_path}"]
    arguments += [f"--forest={forest}", f"--chosen={forest}", "--only=fastapi-serving-form", "--only=onnx"]
    status = main(arguments)

    output = capsys.readouterr()
    assert status == 0, output.err
    content = json.loads(output.out)
    assert content["machine"]["onnxruntime"]
    assert {cell["system"] for cell in content["loads"]} == {"fastapi-serving-form", "onnx"}
    assert all(cell["requests_per_second"]["minimum"] > 0 for cell in content["loads"])
    assert all(cell["failed"] == 0 for cell in content["loads"])


def test_a_model_that_onnx_cannot_express_is_not_measured(forest, tmp_path, capsys):
    model = load_served_model(forest, tmp_path / "pickles")
    vectorizer, _ = pickle.loads(model.pickled.read_bytes())
    model.pickled.write_bytes(pickle.dumps((vectorizer, DictVectorizer())))
    workspace = Workspace({ORIGINAL_FOREST: model}, tmp_path, tmp_path, print)
    with pytest.raises(ServerError, match=r"the conversion to ONNX failed:(.|\n)*DictVectorizer"):
        LAUNCHERS["onnx"].start(workspace)


def test_a_restarted_server_is_another_process_that_answers(trained_bundle, tmp_path):
    model = load_served_model(trained_bundle, tmp_path / "pickles")
    models = dict.fromkeys((FOREST, ORIGINAL_FOREST, CHOSEN), model)
    workspace = Workspace(models, tmp_path, tmp_path, print)
    with SystemRunner(workspace, candidates(4)) as runner:
        assert runner.start(BY_NAME["echo"]) > 0
        before = runner._servers["echo"]._process.pid
        assert runner.restart(BY_NAME["echo"]) > 0
        after = runner._servers["echo"]._process.pid
        with runner.running(BY_NAME["echo"]):
            runner.warm_up(BY_NAME["echo"], 0.1)
        assert not psutil.pid_exists(before)
    assert before != after
    assert not psutil.pid_exists(after)


def test_unknown_names_of_systems_are_refused(capsys):
    assert main(["bench", "--only=nothing"]) == 1
    assert "--only nothing: must be the beginning of one of tutorial," in capsys.readouterr().err
    with pytest.raises(SelectionError):
        Settings(rounds=1, seconds=1, only=("tutorial", "nothing")).names()


def test_a_quick_run_measures_all_systems_of_the_ratios():
    quick = Settings(rounds=1, seconds=1, quick=True).names()
    peers = {"litserve", "bentoml", "ray", "fastapi"}
    assert {"tutorial", "documented", "onnx", *peers, *(f"{name}-serving-form" for name in peers)} <= set(
        quick
    )
    assert {OURS, OURS_DEFAULT, OURS_CHOSEN, PREDICTOR, "front-end", "noop", "echo", "start"} <= set(quick)
    assert set(quick) < set(MEASUREMENTS)


def test_peers_serve_the_original_forest_unless_they_have_the_serving_form():
    for name, system in BY_NAME.items():
        if not name.startswith(("ours", "predictor", "scaling", "front-end", "echo")):
            expected = FOREST if name.endswith("serving-form") else ORIGINAL_FOREST
            assert LAUNCHERS[system.server].model == expected


def test_a_full_run_has_a_row_for_each_number_of_workers():
    names = Settings(rounds=1, seconds=1).names()
    for count in WORKER_COUNTS:
        assert {f"scaling-{count}-1", f"scaling-1-{count}", f"scaling-{count}-{count}"} <= set(names)
        assert {f"scaling-predictor-{count}", f"scaling-front-end-{count}"} <= set(names)
        start_of = LAUNCHERS[f"scaling-{count}-1"]
        assert start_of.needs == ("scaling-predictor-1",)


def test_every_part_of_a_system_has_a_readiness_check():
    asked = {system.server for system in SYSTEMS}
    for system in SYSTEMS:
        assert set(LAUNCHERS[system.server].needs) <= asked | {"stub"}


GENERATORS = [
    pytest.param(True, id="wrk", marks=pytest.mark.skipif(not shutil.which("wrk"), reason="not installed")),
    pytest.param(False, id="ours"),
]


@pytest.mark.parametrize("wrk", GENERATORS)
def test_the_load_generator_counts_answers_and_failures(wrk, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.load.has_wrk", lambda: wrk)
    bodies = tmp_path / "bodies"
    bodies.write_text("\n".join(json.dumps({"rows": ROWS[:count]}) for count in (1, 2, 3)))
    with answering() as port:
        fine = load(f"http://127.0.0.1:{port}/", bodies, 4, 0.5)
    with answering(503) as port:
        broken = load(f"http://127.0.0.1:{port}/", bodies, 4, 0.5)
    assert fine.requests > 10
    assert fine.failed == 0
    assert 0 < fine.p50_ms <= fine.p90_ms <= fine.p99_ms < 1000 * fine.seconds
    assert broken.requests == 0
    assert broken.failed > 10


def test_wrong_answers_end_a_measurement():
    checker = AnswerChecker(ROWS, [row["score"] / 100 for row in ROWS])
    with answering() as port:
        assert checker.is_answering(port, RIGHT)
        checker.warm_up(port, RIGHT, 0.1)
    with answering(off_by=1e-5) as port, pytest.raises(WrongAnswer):
        checker.is_answering(port, RIGHT)
    with answering(500) as port:
        assert not checker.is_answering(port, RIGHT)
        with pytest.raises(NoAnswer, match="500"):
            checker.warm_up(port, RIGHT, 0.1)
    assert not checker.is_answering(free_ports(1)[0], RIGHT)


def test_systems_that_are_not_measured_use_no_cpu():
    nest = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    server = ServerProcess("busy", ChildProcess([sys.executable, "-c", nest], env=dict(os.environ)))
    try:
        family = wait_for_family(server)
        server.pause()
        before = seconds(family)
        time.sleep(0.3)
        assert seconds(family) - before < 0.05
        server.resume()
        deadline = time.monotonic() + 20
        while seconds(family) - before < 0.05:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert server.memory_mb() > 1
    finally:
        server.pause()
        server.stop()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


def wait_for_family(server: ServerProcess) -> list[psutil.Process]:
    wait_until_sync(lambda: len(list(server._processes())) >= 2)
    return list(server._processes())


def seconds(family: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in family)


def test_the_error_for_a_server_that_ends_has_its_last_lines():
    server = ServerProcess(
        "doomed", ChildProcess([sys.executable, "-c", "exit('no model')"], env=dict(os.environ))
    )
    with pytest.raises(ServerError, match=r"doomed ended with status 1; its last lines:\n  no model"):
        server.wait(lambda: False)
    server.stop()


def loads(*rates: float, failed: int = 0) -> list[Load]:
    return [Load(int(rate * 2), 2.0, 1.5, 2.0, 4.0, failed) for rate in rates]


@pytest.fixture(scope="module")
def forest(tmp_path_factory) -> Path:
    """Directory of a version with the tutorial's forest as it was fitted."""
    storage = tmp_path_factory.mktemp("forest")
    train(generate(200), storage=storage, version="forest", estimator="tutorial", rewrite=False)
    return storage / "placement" / "forest"


@pytest.fixture
def results() -> Results:
    made = Results({"processor": "abacus"}, {"rounds": 3, "seconds": 2.0, "quick": False})
    made.loads |= {
        Cell(OURS, 1, 1): [Load(800, 2.0, p50, 3.0, 4.0, 0) for p50 in (2.0, 2.5, 2.0)],
        Cell(OURS_DEFAULT, 1, 1): [Load(400, 2.0, p50, 5.0, 6.0, 0) for p50 in (4.0, 4.0, 1.0)],
        Cell("tutorial", 1, 1): [Load(100, 2.0, 20.0, 21.0, 22.0, 0)] * 3,
        Cell(OURS, 64, 1): loads(3000, 3100, 2000),
        Cell("tutorial", 64, 1): loads(50, 62, 20, failed=2),
        Cell("litserve", 64, 1): loads(1000, 1000, 1000),
        Cell("ray-serving-form", 64, 1): loads(2000, 2000, 2000),
        Cell("front-end", 64, 1): loads(18_000, 18_000, 18_000),
        Cell("echo", 64, 1): loads(40_000, 36_000, 36_000),
        Cell(PREDICTOR, *FULL_BATCHES): loads(100, 100, 100),
    }
    made.bulk |= {OURS_DEFAULT: [8000.0, 8000.0, 8000.0]}
    made.ready_s |= {OURS: [2.0, 3.0, 2.0], "tutorial": [1.25], "documented": [8.0, 6.0, 8.0]}
    made.memory_mb |= {OURS: [120.0, 120.0, 121.0], "documented": [200.0, 200.0, 200.0]}
    made.encoder_s |= {1: [(10e-6, 120e-6)], 10_000: [(20e-3, 100e-3)]}
    made.in_process |= {"forest": [4000.0, 4000.0, 4000.0]}
    made.added_ms += [0.5, 0.4, 0.9]
    return made


def test_ratios_are_computed_for_each_round(results):
    content = report.content(results)
    assert content["ratios"] == {
        "tutorial_16": None,
        "tutorial_64": 60,
        "tutorial_256": None,
        "tutorial_latency_1": 10,
        "documented_64": None,
        "litserve_64": 3,
        "bentoml_64": None,
        "ray_64": None,
        "fastapi_64": None,
        "litserve_serving_form_64": None,
        "bentoml_serving_form_64": None,
        "ray_serving_form_64": 1.5,
        "fastapi_serving_form_64": None,
        "onnx_64": None,
        "chosen_64": None,
        "bound_64": pytest.approx(3000 / 6400),
        "front_end_echo_64": 0.5,
        "front_end_noop_64": None,
        "added_latency_ms": 0.5,
        "encoder_1": pytest.approx(12),
        "encoder_8": None,
        "encoder_64": None,
        "encoder_128": None,
        "encoder_10000": pytest.approx(5),
        "bulk": 2,
        "memory": pytest.approx(0.6),
        "ready": 0.25,
    }
    assert content["ratio_details"]["tutorial_64"]["minimum"] == 50
    assert content["ratio_details"]["tutorial_64"]["maximum"] == 100
    reached = {name: details["reached"] for name, details in content["ratio_details"].items()}
    assert reached["tutorial_latency_1"]
    assert reached["memory"]
    assert reached["ready"]
    assert reached["tutorial_64"] is False
    assert reached["added_latency_ms"] is False
    assert reached["bound_64"] is False
    assert reached["front_end_noop_64"] is None
    json.dumps(content)


def test_the_tables_show_medians_spread_failures_and_problems(results):
    results.problems["bentoml"] = "bentoml ended with status 1;\n  no space"
    text = " ".join(report.text(results).split())
    assert f"≥ 120x 60.0x (50.0{TO}100.0) no" in text
    assert f"ours → kserve-sklearnserver, v1 400 3,000 (2,000{TO}3,100)" in text
    assert "tutorial's app: Flask, gunicorn (6 FAILED)" in text
    assert "bentoml bentoml ended with status 1; no space" in text


def test_a_system_with_wrong_answers_has_no_ratio(results):
    results.problems[OURS] = "answered nonsense"
    content = report.content(results)
    assert content["ratios"]["tutorial_64"] is None
    assert content["ratios"]["memory"] is None


def test_the_page_names_the_machine_and_the_command(results, tmp_path):
    page = report.markdown(results, "benchmarks.svg", "make bench")
    assert "| processor | abacus |" in page
    assert "Written by `make bench`" in page
    assert "Rounds: 3, of 2 s a load." in page
    assert "](benchmarks.svg)" in page
    plot.write(results, tmp_path / "benchmarks.svg")
    ET.fromstring((tmp_path / "benchmarks.svg").read_text())
