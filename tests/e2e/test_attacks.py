"""A transformer survives attacks on its memory, and answers an honest client meanwhile: the short form.

``make attacks`` is the long one.
"""

import pytest

from tests.soak.attacks import ATTACKS, MEMORY_LIMIT_MIB, Victim, attacker, burst, honest_client
from tests.support.sync_processes import running_transformer

TRY_AGAIN = "RESOURCE_EXHAUSTED: too many requests arrive at the same time"


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
    # On a busy machine this client may take more than a second between a call and its message.
    refused = sum(count for status, count in statuses.items() if status.startswith(TRY_AGAIN))
    assert statuses["OK"] + refused == 10_000
    assert refused < 10


def test_the_memory_is_returned_afterwards(victim):
    assert victim.memory() < MEMORY_LIMIT_MIB / 2
