"""MLServer without its worker process gives no reason for errors, and versions are still told apart."""

import asyncio
import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from predictor.process import PredictorProcess
from predictor.runtimes import get_runtime
from tests.support import sync_processes
from tests.support.async_processes import running_predictor
from tests.support.endpoints import READINESS, V1_PREDICT, V2_INFER
from tests.support.in_process_transformer import in_process_transformer
from tests.support.version_pairs import VersionPair
from tests.support.waiting import wait_until
from transformer.bundle.format import load_bundle
from transformer.upstream.known_versions import known_versions
from transformer.upstream.messages import v2_body

RUNTIME = get_runtime("kserve-mlserver")


@pytest.fixture(scope="module")
def old(version_pair) -> Iterator[PredictorProcess]:
    """A real MLServer with the old version."""
    pair = version_pair("category_renamed")
    with sync_processes.running_predictor(RUNTIME, pair.old, env=RUNTIME.spec_env) as process:
        yield process


def test_refused_feature_names_get_an_error_without_a_reason_and_the_connection_closes(old, pair):
    newest = known_versions(load_bundle(pair.new))[0]
    body = v2_body(newest.reference, newest.feature_names, RUNTIME.probability_output)
    connection = http.client.HTTPConnection("127.0.0.1", old.http_port, timeout=30)
    connection.request("POST", V2_INFER, body, {"content-type": "application/json"})
    with connection.sock as sock:
        response = connection.getresponse()
        assert (response.status, response.read()) == (500, b"Internal Server Error")
        assert sock.recv(1) == b""


@pytest.mark.parametrize("verify", ["connection", "request"])
async def test_the_old_version_is_found_after_the_newest_was_refused(verify, old, pair):
    hop = (f"127.0.0.1:{old.http_port}", "--predictor_protocol=v2", f"--verify={verify}")
    rows = pair.candidates[:20]
    async with in_process_transformer(pair.new, *hop) as running:
        response = await running.http.post(V1_PREDICT, json={"instances": rows})
    assert (response.status_code, response.headers["x-model-version"]) == (200, "v1")
    scores = [one["placement_probability"] for one in response.json()["predictions"]]
    assert scores == pytest.approx(pair.references["v1"].probabilities(rows), abs=1e-12)


@pytest.mark.parametrize("hop", ["v2", "grpc-v2"])
async def test_a_model_of_another_encoding_gives_no_score(hop, pair: VersionPair, tmp_path: Path, caplog):
    """The bundle knows only the old version, and the new one is served."""
    async with running_predictor(pair.new, tmp_path / "new.log") as new:
        port = new.grpc_port if hop == "grpc-v2" else new.http_port
        hopping = (f"127.0.0.1:{port}", f"--predictor_protocol={hop}")
        async with in_process_transformer(pair.old, *hopping, ready=False) as running:
            response = await running.http.post(V1_PREDICT, json={"instances": pair.candidates[:3]})
            ready = [(await running.http.get(path)).status_code for path in READINESS]
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json() == {"error": "no verified predictor connection available"}
    assert set(ready) == {503}


async def test_a_predictor_that_starts_and_stops_is_never_taken_for_another_version(pair, tmp_path):
    """Requests go on while the old version's server stops and the new version's starts on its port."""
    references = pair.references
    seen: set[str] = set()
    async with running_predictor(pair.old, tmp_path / "old.log") as first:
        port = first.http_port
        hop = (f"127.0.0.1:{port}", "--predictor_protocol=v2")
        async with in_process_transformer(pair.new, *hop) as running:

            async def ask(number: int) -> None:
                row = pair.candidates[number % len(pair.candidates)]
                response = await running.http.post(V1_PREDICT, json={"instances": [row]})
                if response.status_code == 503:
                    return
                assert response.status_code == 200, response.text
                version = response.headers["x-model-version"]
                (score,) = [one["placement_probability"] for one in response.json()["predictions"]]
                assert score == pytest.approx(references[version].probabilities([row])[0], abs=1e-12)
                seen.add(version)

            async def keep_asking(until: str) -> None:
                number = 0
                while until not in seen:
                    await ask(number)
                    number += 1
                    await asyncio.sleep(0.01)

            await keep_asking("v1")
            await asyncio.to_thread(first.stop)
            asking = asyncio.create_task(keep_asking("v2"))
            async with running_predictor(pair.new, tmp_path / "new.log", http_port=port):
                await wait_until(asking.done)
                await asking
    assert seen == {"v1", "v2"}
