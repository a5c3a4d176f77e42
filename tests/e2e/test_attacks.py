"""A transformer survives attacks on its memory, and answers an honest client meanwhile: the short form.

``make attacks`` is the long one.
"""

import pytest

from tests.soak.attacks import ATTACKS, Victim, burst, honest_client
from tests.support.sync_processes import running_transformer

#: The manifest's memory limit, in MiB.
MEMORY_LIMIT_MIB = 1024


@pytest.fixture(scope="module")
def victim(trained_bundle, mlserver, tmp_path_factory):
    ports = (mlserver.http_port, mlserver.grpc_port)
    log = tmp_path_factory.mktemp("attacked") / "log"
    with running_transformer(ports, trained_bundle, log) as process:
        yield Victim(process.http_port, process.grpc_port, process.pid)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_an_attack_takes_bounded_memory_and_an_honest_client_is_answered(attack, victim):
    async with honest_client(victim) as honest:
        await attack(victim, 1)
    assert honest.failed == {}
    assert min(honest.answered["REST"], honest.answered["gRPC"]) > 0
    assert victim.memory("VmHWM") < MEMORY_LIMIT_MIB


@pytest.mark.parametrize("connections", [1, 64])
async def test_each_call_of_a_burst_is_answered(connections, victim):
    assert await burst(victim, 10_000, connections) == {"OK": 10_000}


def test_the_memory_is_returned_afterwards(victim):
    assert victim.memory() < MEMORY_LIMIT_MIB / 2
