"""`placement status` prints the state of a cluster for people, and all of it as JSON for programs."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inferenceservice.rollout import rollout
from tests.support.cluster.fixtures import V1, V2, Start, Versions
from tests.support.cluster.kserve_controllers import condition
from tests.support.cluster.pods import container, ended, pod, waiting
from tests.support.paths import PLACEMENT

METRICS = """# HELP transformer_predictor_connections Connections to the predictor by what is behind them
# TYPE transformer_predictor_connections gauge
transformer_predictor_connections{state="usable",version="v1"} %d
transformer_predictor_connections{state="usable",version="v2"} 0.0
transformer_predictor_connections{state="verifying",version=""} %d
# HELP transformer_requests_total Answered requests
# TYPE transformer_requests_total counter
transformer_requests_total{version="v1"} 7.0
"""


Status = Callable[..., Any]


@pytest.fixture
def status(versions: Versions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Status:
    """Run `placement status` on the cluster and return what it prints."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))

    async def run(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            PLACEMENT, "status", "--context=test", *arguments, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert process.returncode == 0
        return output.decode()

    return run


async def test_the_text_output_has_aligned_columns(start: Start, status: Status) -> None:
    cluster = await start()
    failing = container(waiting("CrashLoopBackOff"), last=ended("no bundle.json"), restarts=2)
    cluster.listed = [
        pod("t-1"),
        pod("t-2", "--http_port", "9000"),
        pod("p-1", component="predictor", ready=False, containerStatuses=[failing]),
    ]
    cluster.metrics = {"t-1:8080": METRICS % (4, 0), "t-2:9000": METRICS % (3, 1)}
    cluster.isvc["status"] |= {
        "conditions": [
            condition("PredictorReady", "False", "ReconcileFailed", "no such runtime"),
            condition("TransformerReady", "True"),
        ],
        "modelStatus": {
            "transitionStatus": "BlockedByFailedLoad",
            "lastFailureInfo": {"reason": "ModelLoadFailed", "message": "no such bucket"},
        },
    }
    assert await status() == (
        "mode         Standard\n"
        f"transformer  {V1}\n"
        "             2 of 2 replicas updated, 2 of them ready\n"
        f"predictor    {V1}\n"
        "             2 of 2 replicas updated, 0 of them ready, 2 restarts\n"
        "             container kserve-container failed 3 times, last with exit code 1: no bundle.json\n"
        "connections    7  usable     v1\n"
        "               1  verifying\n"
        "conditions   PredictorReady    False  ReconcileFailed: no such runtime\n"
        "             TransformerReady  True\n"
        "model        ModelLoadFailed: no such bucket\n"
    )


async def test_the_text_output_shows_the_traffic_of_each_revision(
    start: Start, target: Any, status: Status
) -> None:
    await start("Knative")
    await rollout(target(), V2, print, canary=5)
    lines = (await status()).splitlines()
    assert lines[: lines.index("connections  unknown: no pod of the transformer is running")] == [
        "mode         Knative",
        f"transformer  {V2}",
        f"             100 %  placement-transformer-00002  {V2}",
        f"predictor    {V1}",
        f"               5 %  placement-predictor-00002  {V2}",
        f"              95 %  placement-predictor-00001  {V1}",
        f"canary       {V2}, 5 % of the traffic",
    ]


async def test_the_json_output_has_everything(start: Start, target: Any, status: Status) -> None:
    cluster = await start()
    await rollout(target(), V2, print)
    cluster.listed, cluster.metrics = [pod("t-1")], {"t-1:8080": METRICS % (4, 0)}
    content = json.loads(await status("--json"))
    assert (content["transformer_uri"], content["previous_uri"]) == (V2, V1)
    assert content["cluster"]["mode"] == "Standard"
    assert content["cluster"]["components"][1]["replicas"] == {
        "wanted": 2, "updated": 2, "available": 2, "total": 2
    }  # fmt: skip
    assert {one["type"] for one in content["conditions"]} == {"Ready", "PredictorReady", "TransformerReady"}
    assert content["connections"] == [
        {"component": "transformer", "version": "v1", "state": "usable", "count": 4}
    ]
    assert content["connections_unknown"] is None


@pytest.mark.parametrize(
    ("path", "said"),
    [
        pytest.param("", 'pods is forbidden: User "eve" cannot list', id="no pods"),
        pytest.param("/t-1:8080/proxy", 'pods "t-1:8080" is forbidden: User "eve" cannot get', id="no proxy"),
    ],
)
async def test_without_permission_for_pods_the_rest_is_shown(
    start: Start, status: Status, path: str, said: str
) -> None:
    cluster = await start()
    cluster.listed = [pod("t-1")]
    cluster.errors[f"/api/v1/namespaces/scoring/pods{path}"] = (403, "Forbidden", said)
    lines = (await status()).splitlines()
    assert f"connections  unknown: {said} (Forbidden)" in lines
    shown = "2 available" if path == "" else "1 of them ready"
    assert f"             2 of 2 replicas updated, {shown}" in lines
    assert any(line.split() == ["TransformerReady", "True", "NewReplicaSetAvailable"] for line in lines)
    content = json.loads(await status("--json"))
    assert (content["connections"], content["connections_unknown"]) == ([], f"{said} (Forbidden)")


async def test_a_response_that_is_not_the_transformers_is_reported(start: Start, status: Status) -> None:
    cluster = await start()
    cluster.listed, cluster.metrics = [pod("t-1")], {"t-1:8080": "<html>a proxy</html>"}
    assert "connections  unknown: the response is not the metrics of a transformer: " in await status()
