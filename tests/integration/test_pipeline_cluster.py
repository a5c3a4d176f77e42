"""A pipeline rolls out in a cluster, where its working directory has the claim."""

from inferenceservice.rollout import rollout
from inferenceservice.rollout_target import State
from pipelines.target import connect, serving_uri
from tests.support.cluster.fixtures import V1, V2


async def test_a_version_on_the_mounted_claim_is_rolled_out(start, monkeypatch, tmp_path):
    await start()
    monkeypatch.chdir(tmp_path)
    where = ("placement", "scoring", ".run", "pvc://models")
    assert await serving_uri(*where) == V1
    assert await rollout(connect(*where), V2, print) == "v2"
    assert await connect(*where).state() == State(V2, V2, V1)
    assert await serving_uri(*where) == V2


async def test_there_is_no_version_of_another_service(start):
    await start()
    assert await serving_uri("other", "scoring", ".run", "pvc://models") == ""
