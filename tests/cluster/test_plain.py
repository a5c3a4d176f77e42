"""Plain Deployments serve like KServe's, and the same commands roll them out."""

import json
from collections.abc import Iterator

import pytest

from tests.soak.cluster import ClusterService
from tests.soak.rollouts import Outcome, some_more
from tests.support.paths import MANIFEST
from tests.support.placement_command import run_placement
from tests.support.protocol_clients import CLIENTS

SOME = 60


@pytest.fixture(scope="module")
def plain(service: ClusterService) -> Iterator[ClusterService]:
    """The service as plain Deployments."""
    namespace = service.namespace
    namespace.delete_service()
    printed = run_placement("spec", "--plain", "-f", MANIFEST, "--model", service.old)
    assert printed.returncode == 0, printed.stderr
    namespace.kubectl("apply", "-f", "-", stdin=printed.stdout)
    namespace.wait_for_deployments(service.old)
    yield service
    namespace.kubectl("delete", "-f", "-", stdin=printed.stdout)


@pytest.mark.parametrize("protocol", CLIENTS)
def test_every_protocol_is_answered(protocol: str, plain: ClusterService) -> None:
    address = plain.namespace.address()
    reference = plain.pair.references["v1"]
    rows = plain.pair.candidates[:3]
    answer = CLIENTS[protocol](address.url, address.grpc, rows, reference.bundle.signature)
    assert answer.version == "v1"
    assert answer.probabilities == pytest.approx(reference.probabilities(rows), abs=1e-9)


async def test_status_shows_what_serves(plain: ClusterService) -> None:
    done = await plain.placement("status", "--json")
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert (status["transformer_uri"], status["predictor_uri"]) == (plain.old, plain.old)
    assert {one["version"] for one in status["connections"] if one["state"] == "usable"} == {"v1"}
    assert (await plain.placement("status")).returncode == 0


async def test_the_commands_roll_it_out_and_back_without_a_failed_request(plain: ClusterService) -> None:
    async with plain.under_load() as tally:
        await some_more(tally, SOME)
        rolled_out = await plain.placement("rollout", plain.new)
        await some_more(tally, SOME)
        rolled_back = await plain.placement("rollback")
        await some_more(tally, SOME)
    assert (rolled_out.returncode, rolled_out.stdout) == (0, "v2 serves\n"), rolled_out.stderr
    assert (rolled_back.returncode, rolled_back.stdout) == (0, "v1 serves\n"), rolled_back.stderr
    print(f"\nplain: {tally}")
    outcome = Outcome(tally)
    outcome.expect_no_failure()
    outcome.expect_answers("v1", "v2", at_least=SOME)
    assert outcome.unexpected == []


async def test_a_missing_version_is_undone_and_creates_nothing_in_the_claim(plain: ClusterService) -> None:
    missing = "pvc://models/placement/v91"
    done = await plain.placement("rollout", missing, f"--bundle={missing}={plain.pair.new}")
    assert done.returncode == 1
    assert "the previous state is restored" in done.stderr
    assert "placement/v91/.': No such file or directory" in done.stderr
    plain.namespace.wait_for_deployments(plain.old)
    listed = plain.namespace.kubectl("exec", "models", "--", "ls", "/models/placement").split()
    assert "v91" not in listed
