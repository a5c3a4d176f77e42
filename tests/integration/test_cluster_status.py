"""What `placement status` tells of a cluster."""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inferenceservice.rollout import rollout
from tests.support.cluster.fixtures import V1, V2, Start, Versions
from tests.support.cluster.kserve_controllers import Json, condition

PLACEMENT = Path(sys.executable).with_name("placement")
METRICS = """# HELP transformer_predictor_connections Connections to the predictor by what is behind them
# TYPE transformer_predictor_connections gauge
transformer_predictor_connections{state="usable",version="v1"} %d
transformer_predictor_connections{state="usable",version="v2"} 0.0
transformer_predictor_connections{state="verifying",version=""} %d
# HELP transformer_requests_total Answered requests
# TYPE transformer_requests_total counter
transformer_requests_total{version="v1"} 7.0
"""


def pod(
    name: str, *arguments: str, component: str = "transformer", ready: bool = True, **status: str
) -> Json:
    """A pod as KServe's Deployments make it."""
    labels = {"serving.kserve.io/inferenceservice": "placement", "component": component}
    container = "kserve-container" if component == "transformer" else "transformer-container"
    conditions = [condition("Ready", "True" if ready else "False")]
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [{"name": "another"}, {"name": container, "args": list(arguments)}]},
        "status": {"phase": "Running", "conditions": conditions, **status},
    }


Status = Callable[..., Any]


@pytest.fixture
def status(versions: Versions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Status:
    """Run `placement status` on the cluster: standard output."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))

    async def run(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(PLACEMENT, "status", "--context=test", *arguments), stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert process.returncode == 0
        return output.decode()

    return run


async def test_the_status_shows_conditions_replicas_and_traffic(start: Start, target: Any) -> None:
    await start()
    standard = await target().conditions()
    assert standard.mode == "Standard"
    assert {(one.type, one.status) for one in standard.conditions} == {
        ("TransformerReady", "True"), ("PredictorReady", "True"), ("Ready", "True")
    }  # fmt: skip
    assert [(one.name, one.uri, one.replicas.available) for one in standard.components] == [
        ("transformer", V1, 2), ("predictor", V1, 2)
    ]  # fmt: skip
    await start("Knative")
    await rollout(target(), V2, print, canary=20)
    knative = await target().conditions()
    assert [(one.uri, one.percent) for one in knative.components[1].traffic] == [(V2, 20), (V1, 80)]


async def test_people_read_it_in_columns(start: Start, status: Status) -> None:
    cluster = await start()
    cluster.listed = [pod("t-1"), pod("t-2", "--http_port", "9000")]
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
        "             2 of 2 replicas updated, 2 available\n"
        f"predictor    {V1}\n"
        "             2 of 2 replicas updated, 2 available\n"
        "connections    7  usable     v1\n"
        "               1  verifying\n"
        "conditions   PredictorReady    False  ReconcileFailed: no such runtime\n"
        "             TransformerReady  True\n"
        "model        ModelLoadFailed: no such bucket\n"
    )


async def test_people_see_what_each_revision_gets(start: Start, target: Any, status: Status) -> None:
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


async def test_programs_read_all_of_it(start: Start, target: Any, status: Status) -> None:
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


async def test_a_pod_with_both_is_asked_for_its_transformer(start: Start, target: Any) -> None:
    cluster = await start(collocated=True)
    cluster.listed = [pod("p-1", component="predictor")]
    cluster.metrics = {"p-1:8080": "text"}
    assert (await target().metrics()).texts == {"p-1": "text"}


async def test_only_running_pods_are_asked_and_only_ready_ones_must_answer(start: Start, target: Any) -> None:
    cluster = await start()
    leaving = pod("t-4")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    cluster.listed = [
        pod("t-1"),
        pod("t-2", ready=False),
        pod("t-3", phase="Pending"),
        leaving,
        pod("t-5", component="predictor"),
    ]
    cluster.metrics = {"t-1:8080": "one"}
    seen = await target().metrics()
    assert (seen.texts, seen.error) == ({"t-1": "one"}, None)
    cluster.metrics["t-2:8080"] = "two"
    assert (await target().metrics()).texts == {"t-1": "one", "t-2": "two"}
    cluster.listed += [pod("t-6"), pod("t-7")]
    seen = await target().metrics()
    assert len(seen.texts) == 2
    assert seen.error == "error trying to reach service t-6:8080 (ServiceUnavailable) (and 1 more)"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        pytest.param("", 'pods is forbidden: User "eve" cannot list', id="no pods"),
        pytest.param("/t-1:8080/proxy", 'pods "t-1:8080" is forbidden: User "eve" cannot get', id="no proxy"),
    ],
)
async def test_whoever_may_not_see_the_pods_sees_the_rest(
    start: Start, status: Status, path: str, said: str
) -> None:
    cluster = await start()
    cluster.listed = [pod("t-1")]
    cluster.errors[f"/api/v1/namespaces/scoring/pods{path}"] = (403, "Forbidden", said)
    lines = (await status()).splitlines()
    assert f"connections  unknown: {said} (Forbidden)" in lines
    assert any(line.split() == ["TransformerReady", "True", "NewReplicaSetAvailable"] for line in lines)
    content = json.loads(await status("--json"))
    assert (content["connections"], content["connections_unknown"]) == ([], f"{said} (Forbidden)")


async def test_what_is_not_the_transformer_is_told(start: Start, status: Status) -> None:
    cluster = await start()
    cluster.listed, cluster.metrics = [pod("t-1")], {"t-1:8080": "<html>a proxy</html>"}
    assert "connections  unknown: the response is not the metrics of a transformer: " in await status()
