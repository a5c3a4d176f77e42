"""With several workers, each scrape shows the whole pod: all REST workers, and gRPC in the first process."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import grpc
import psutil
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from inferenceservice.local.launch import TransformerProcess
from tests.support.endpoints import V1_PREDICT
from tests.support.paths import ROOT
from tests.support.prometheus_samples import read_samples, sum_of
from tests.support.request_bodies import grpc_objects
from tests.support.sync_processes import running_transformer
from tests.support.waiting import wait_until
from training.candidates import SAMPLE

WORKERS = 2
CALLS = 12


async def ask(url: str, count: int) -> None:
    """Send requests over a new connection each, so that all workers get some."""
    for _ in range(count):
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}{V1_PREDICT}", json={"instances": [SAMPLE] * 2}) as response,
        ):
            assert response.status == 200, await response.text()


async def counts(url: str) -> dict[str, float]:
    """Return what a scrape shows of the requests and the connections."""
    samples = await read_samples(url)
    return {
        "v1": sum_of(samples, "transformer_requests_total", protocol="v1", status="200"),
        "grpc": sum_of(samples, "transformer_requests_total", protocol="grpc", status="200"),
        "candidates": sum_of(samples, "transformer_candidate_values_total", field="gender"),
        "decisions": sum_of(samples, "transformer_decisions_total"),
        "kserve": sum_of(samples, "request_predict_seconds_count", model_name="placement"),
        "training": sum_of(samples, "transformer_training_share", field="gender"),
        "usable": sum_of(samples, "transformer_predictor_connections", state="usable"),
    }


def workers(process: TransformerProcess) -> set[int]:
    """Return the ids of the processes that serve REST."""
    found = set()
    for one in psutil.Process(process.pid).children(recursive=True):
        # One that has ended, or has not been waited for, has no command line.
        with contextlib.suppress(psutil.NoSuchProcess):
            if "multiprocessing.spawn" in " ".join(one.cmdline()):
                found.add(one.pid)
    return found


def shared_directory_of(process: TransformerProcess) -> Path:
    """Return the directory of the metrics, whose lock the first process holds."""
    (lock,) = (
        Path(one.path) for one in psutil.Process(process.pid).open_files() if one.path.endswith("/lock")
    )
    return lock.parent


async def test_every_scrape_shows_all_processes_also_after_one_of_them_was_replaced(
    mlserver, trained_bundle, tmp_path
):
    ports = (mlserver.http_port, mlserver.grpc_port)
    arguments = (f"--workers={WORKERS}", "--predictor_connections=1")
    with running_transformer(ports, trained_bundle, tmp_path / "log", *arguments) as process:
        url = f"http://127.0.0.1:{process.http_port}"
        await ask(url, CALLS)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{process.grpc_port}") as channel:
            await GRPCInferenceServiceStub(channel).ModelInfer(grpc_objects([SAMPLE] * 3))
        expected: dict[str, float] = {
            "v1": CALLS,
            "grpc": 1,
            "candidates": 2 * CALLS + 3,
            "decisions": 2 * CALLS + 3,
            "kserve": CALLS + 1,
            "training": 1,
            "usable": WORKERS + 1,
        }

        async def shows(total: dict[str, float]) -> bool:
            return all([await counts(url) == total for _ in range(4)])

        await wait_until(lambda: shows(expected))
        lost = min(workers(process))
        os.kill(lost, signal.SIGKILL)
        await wait_until(lambda: len(workers(process) - {lost}) == WORKERS)
        await wait_until(lambda: shows(expected))
        await ask(url, CALLS)
        grown: dict[str, float] = {"v1": 2 * CALLS, "candidates": 4 * CALLS + 3, "decisions": 4 * CALLS + 3}
        await wait_until(lambda: shows({**expected, **grown, "kserve": 2 * CALLS + 1}))
        own = shared_directory_of(process)
        assert {path.name for path in own.iterdir()} - {"lock"} <= {
            f"{kind}_{number}.db"
            for kind in ("counter", "histogram", "gauge_livesum", "gauge_max")
            for number in range(WORKERS + 1)
        }
    assert not own.exists()


def test_the_metrics_of_a_process_that_was_killed_are_removed_by_the_next_one():
    script = (
        "from transformer.metrics import shared_directory; print(shared_directory(), flush=True); input()"
    )
    command = [sys.executable, "-c", script]

    def start() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    (first, killed), (second, running) = start(), start()
    first.kill()
    first.communicate()
    assert killed.is_dir()
    third, newest = start()
    assert not killed.exists()
    assert running.is_dir()
    assert newest.is_dir()
    for process, directory in ((second, running), (third, newest)):
        process.communicate("\n")
        shutil.rmtree(directory)
