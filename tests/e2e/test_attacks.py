"""A transformer survives attacks on its memory, and answers an honest client meanwhile: the short form.

``make attacks`` is the long one.
"""

import pytest

from tests.soak.attacks import ATTACKS, MEMORY_LIMIT_MIB, Victim, attacker, burst, honest_client
from tests.support.sync_processes import running_transformer
from transformer.server.grpc import MAX_CALLS

TRY_AGAIN = "RESOURCE_EXHAUSTED: too many requests arrive at the same time"
LIMIT = "RESOURCE_EXHAUSTED: too many gRPC calls in flight"


@pytest.fixture(scope="module")
def victim(trained_bundle, mlserver, tmp_path_factory):
    ports = (mlserver.http_port, mlserver.grpc_port)
    log = tmp_path_factory.mktemp("attacked") / "log"
    # A busy machine may need longer than the default for 10,000 calls.
    timeout = "--predictor_request_timeout_seconds=60"
    with running_transformer(ports, trained_bundle, log, timeout) as process:
        yield Victim(process.http_port, process.grpc_port, process.pid)


@pytest.fixture(scope="module")
def attack():
    with attacker() as attack:
        yield attack


@pytest.mark.parametrize("kind", ATTACKS, ids=lambda kind: kind.__name__)
async def test_an_attack_takes_bounded_memory_and_an_honest_client_is_answered(kind, attack, victim):
    async with honest_client(victim) as honest:
        await attack(kind, victim, 1)
    assert honest.failed == {}
    assert min(honest.answered["REST"], honest.answered["gRPC"]) > 0
    assert victim.memory("VmHWM") < MEMORY_LIMIT_MIB


@pytest.mark.parametrize("connections", [1, 64])
async def test_each_call_of_a_burst_is_answered(connections, victim):
    statuses = await burst(victim, 10_000, connections)

    def refused(message: str) -> int:
        return sum(count for status, count in statuses.items() if status.startswith(message))

    assert statuses["OK"] + refused(TRY_AGAIN) + refused(LIMIT) == 10_000, statuses
    # On a busy machine this client may take more than a second between a call and its message.
    assert refused(TRY_AGAIN) < 10
    # All calls of a connection may have come before the first is answered.
    assert refused(LIMIT) <= max(0, 10_000 // connections - MAX_CALLS // 2)


def test_the_memory_is_returned_afterwards(victim):
    assert victim.memory() < MEMORY_LIMIT_MIB / 2
