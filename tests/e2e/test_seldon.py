"""Behind the mesh of Seldon Core 2: real MLServers, whose versions change under load."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from predictor.process import PredictorProcess
from predictor.runtimes import get_runtime
from tests.support.async_processes import KNATIVE_ENV
from tests.support.endpoints import V1_PREDICT
from tests.support.in_process_transformer import in_process_transformer
from tests.support.paths import ROOT
from tests.support.seldon_mesh import seldon_mesh
from tests.support.sync_processes import running_predictor

RUNTIME = get_runtime("kserve-mlserver")
TRANSFORMER = ROOT / "inferenceservice" / "seldon" / "transformer.yaml"


def arguments() -> list[str]:
    """Return the manifest's arguments, without those that only fit a pod."""
    deployment = next(yaml.safe_load_all(TRANSFORMER.read_text()))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    of_the_pod = ("--predictor_host=", "--http_port=", "--shutdown_delay_seconds=")
    return [one for one in container["args"] if not one.startswith(of_the_pod)]


@pytest.fixture(scope="module")
def versions(version_pair) -> Iterator[dict[str, PredictorProcess]]:
    """Both versions, under the names that Seldon gives them in a server."""
    pair = version_pair("category_renamed")
    with contextlib.ExitStack() as stack:
        servers = {}
        for name, bundle in (("placement_1", pair.old), ("placement_2", pair.new)):
            env = {**RUNTIME.spec_env, **KNATIVE_ENV}
            servers[name] = stack.enter_context(running_predictor(RUNTIME, bundle, name, env=env))
        yield servers


async def test_every_answer_of_a_rollout_has_one_versions_scores(versions, pair):
    answered = {"v1": 0, "v2": 0}
    async with (
        seldon_mesh("placement") as mesh,
        in_process_transformer(pair.new, f"127.0.0.1:{mesh.port}", *arguments(), ready=False) as running,
    ):

        async def ask(number: int) -> None:
            row = pair.candidates[number % len(pair.candidates)]
            response = await running.http.post(V1_PREDICT, json={"instances": [row]})
            assert response.status_code == 200, response.text
            version = response.headers["x-model-version"]
            (score,) = [one["placement_probability"] for one in response.json()["predictions"]]
            assert score == pytest.approx(pair.references[version].probabilities([row])[0], abs=1e-12)
            answered[version] += 1

        async def ask_many() -> dict[str, int]:
            before = dict(answered)
            await asyncio.gather(*map(ask, range(100)))
            return {version: answered[version] - before[version] for version in answered}

        mesh.versions = {"placement_1": versions["placement_1"]}
        assert await ask_many() == {"v1": 100, "v2": 0}
        mesh.versions = versions
        await ask_many()
        mesh.versions = {"placement_2": versions["placement_2"]}
        assert (await ask_many())["v1"] == 0
    assert mesh.refused == 0
    assert set(mesh.routed) == {"placement_1", "placement_2"}
    assert min(answered.values()) > 0


async def test_without_the_header_no_call_reaches_a_server(versions, trained_bundle: Path):
    plain = [one for one in arguments() if not one.startswith("--predictor_header")]
    async with (
        seldon_mesh("placement") as mesh,
        in_process_transformer(trained_bundle, f"127.0.0.1:{mesh.port}", *plain, ready=False) as running,
    ):
        mesh.versions = versions
        response = await running.http.post(V1_PREDICT, json={"instances": [{}]})
        assert (await running.http.get("/v2/health/ready")).status_code == 503
    assert response.status_code == 400
    assert mesh.refused > 0
    assert mesh.routed == {}
