"""The state of a cluster that `placement status` reads."""

from typing import Any

from inferenceservice.cluster.status import NewestPods
from inferenceservice.rollout import rollout
from tests.support.cluster.fixtures import V1, V2, Start
from tests.support.cluster.kserve_controllers import condition
from tests.support.cluster.pods import container, ended, pod, terminating, waiting


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


async def test_metrics_of_a_collocated_pod_are_read_from_its_transformer(start: Start, target: Any) -> None:
    cluster = await start(collocated=True)
    cluster.listed = [pod("p-1", component="predictor")]
    cluster.metrics = {"p-1:8080": "text"}
    assert (await target().metrics()).texts == {"p-1": "text"}


async def test_metrics_are_read_from_running_pods_and_required_of_ready_ones(
    start: Start, target: Any
) -> None:
    cluster = await start()
    cluster.listed = [
        pod("t-1"),
        pod("t-2", ready=False),
        pod("t-3", phase="Pending"),
        terminating(pod("t-4")),
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


async def test_the_status_shows_the_newest_pods_and_their_problems(start: Start, target: Any) -> None:
    cluster = await start()
    broken = container(waiting("CrashLoopBackOff"), last=ended("no bundle.json"), restarts=4)
    cluster.listed = [
        pod("t-1", number=1),
        pod("t-2", number=2, ready=False, containerStatuses=[broken]),
        terminating(pod("t-3", number=3)),
    ]
    transformer, predictor = (await target().conditions()).components
    text = "container kserve-container failed 5 times, last with exit code 1: no bundle.json"
    assert transformer.newest == NewestPods(ready=0, restarts=4, problems=(text,))
    assert predictor.newest == NewestPods(0, 0, ())


async def test_the_status_shows_why_no_pod_is_created(start: Start, target: Any) -> None:
    cluster = await start()
    failure = condition("ReplicaFailure", "True", "FailedCreate", "exceeded quota: small")
    cluster.deployments["placement-predictor"]["status"]["conditions"] = [failure]
    predictor = (await target().conditions()).components[1]
    assert predictor.newest.problems == ("cannot create pods: exceeded quota: small",)
