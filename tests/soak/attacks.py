"""Attacks on one transformer: floods that try to take its memory, descriptors or time.

Each attack stays on this machine and ends after a bounded time. Meanwhile an honest client of its own
connections sends one request after another, over REST and over gRPC.
"""

import argparse
import asyncio
import contextlib
import gzip
import logging
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import psutil
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from tests.support.async_processes import running_predictor, running_transformer
from tests.support.endpoints import GRPC_INFER, V1_PREDICT
from tests.support.http2_client import Http2Connection, grpc_message, http2_connection
from tests.support.request_bodies import grpc_objects
from tests.support.version_pairs import make_pair
from training.candidates import SAMPLE

HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
PROTOCOLS = ("REST", "gRPC")
MIB = 1 << 20
#: The manifest's memory limit.
MEMORY_LIMIT_MIB = 1024
#: Almost the maximum size of a request.
BIG = 8 * MIB - 100_000
#: Seconds for which connections with half requests are held open.
HOLD_S = 2.0
#: Seconds in which an honest request must be answered.
HONEST_TIMEOUT_S = 30.0


@dataclass
class Honest:
    """Results of the honest client.

    Attributes
    ----------
    answered
        Number of predictions by protocol.
    failed
        Number of other responses by protocol and reason.
    slowest_s
        The longest request by protocol, in seconds, also if the block ended before it did.
    """

    answered: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    slowest_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Victim:
    """The ports of the attacked transformer on this machine, and its process."""

    http_port: int
    grpc_port: int
    pid: int

    def memory(self, name: str = "VmRSS") -> float:
        """Return the resident memory of all its processes in MiB; with ``VmHWM`` the sum of their peaks."""
        return sum(_status(pid, name) for pid in self.pids) / 1024

    def restart_peak(self) -> None:
        """Make the peak begin at the present memory."""
        for pid in self.pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    @property
    def pids(self) -> list[int]:
        """Its first process and the workers."""
        return [self.pid, *(child.pid for child in psutil.Process(self.pid).children(recursive=True))]


def _status(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(value)


#: An attack of a strength; 1 is the short form.
Attack = Callable[[Victim, int], Coroutine[None, None, None]]


async def compressed_messages(victim: Victim, strength: int) -> None:
    """Messages of 8 KB that unpack to nearly the maximum size."""
    content = gzip.compress(b"\0" * BIG)
    message = grpc_message(content, compressed=True)

    async def flood() -> None:
        async with http2_connection(victim.grpc_port) as connection:
            streams = [connection.open_stream(GRPC_INFER, ("grpc-encoding", "gzip")) for _ in range(250)]
            await _send_all(connection, dict.fromkeys(streams, message), end=True)

    await _at_once(flood, 2 * strength)


async def unfinished_messages(victim: Victim, strength: int, path: str = GRPC_INFER) -> None:
    """Streams that each send nearly a whole message and never end."""
    message = grpc_message(b"\0" * (BIG - 1), length=BIG)

    async def flood() -> None:
        async with http2_connection(victim.grpc_port) as connection:
            streams = [connection.open_stream(path) for _ in range(200)]
            await _send_all(connection, dict.fromkeys(streams, message))
            await asyncio.sleep(HOLD_S)

    await _at_once(flood, 2 * strength)


async def unfinished_health_checks(victim: Victim, strength: int) -> None:
    """The same with the other services of the server."""
    await asyncio.gather(*(unfinished_messages(victim, strength, path) for path in (HEALTH, REFLECTION)))


async def calls_without_messages(victim: Victim, strength: int) -> None:
    """Calls with as much metadata as is accepted, in one value or in many, whose message never comes.

    These are more than can be in flight, but not so many that gRPC's core cancels calls.
    """

    async def flood(metadata: list[tuple[str, str]]) -> None:
        async with http2_connection(victim.grpc_port) as connection:
            for number in range(3000):
                connection.open_stream(GRPC_INFER, *metadata)
                if number % 100 == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(HOLD_S)

    long, many = [("x-filler", "x" * 7000)], [(f"x-{number}", "x") for number in range(180)]
    await _at_once(lambda: flood(long), 2 * strength)
    await _at_once(lambda: flood(many), strength)


async def many_connections(victim: Victim, strength: int) -> None:
    """Connections to the gRPC port, each with one stream that stops in its message."""
    message = grpc_message(b"\0" * (BIG - 1), length=BIG)

    async def flood() -> None:
        async with http2_connection(victim.grpc_port) as connection:
            await _send_all(connection, {connection.open_stream(GRPC_INFER): message})

    await _at_once(flood, 100 * strength)


async def half_requests(victim: Victim, strength: int) -> None:
    """REST connections that stop in the head of their request, and close."""
    for _ in range(3 * strength):
        connections = [await asyncio.open_connection("127.0.0.1", victim.http_port) for _ in range(300)]
        for _, writer in connections:
            writer.write(f"POST {V1_PREDICT} HTTP/1.1\r\nhost: a\r\nx: {'x' * 10_000}".encode())
        await asyncio.sleep(0.1)
        for _, writer in connections:
            writer.transport.abort()


async def half_bodies(victim: Victim, strength: int) -> None:
    """REST requests that stop near the end of the largest body."""
    head = f"POST {V1_PREDICT} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {BIG}\r\n\r\n".encode() + b" " * (BIG - 1)

    async def flood() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", victim.http_port)
        try:
            writer.write(request)
            with contextlib.suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(writer.drain(), HOLD_S)
            await asyncio.sleep(HOLD_S)
        finally:
            writer.transport.abort()

    await _at_once(flood, 100 * strength)


async def idle_connections(victim: Victim, strength: int) -> None:
    """REST connections that send nothing after one request."""

    async def flood() -> None:
        with contextlib.suppress(ConnectionError):
            _, writer = await asyncio.open_connection("127.0.0.1", victim.http_port)
            writer.write(b"GET /v2/health/live HTTP/1.1\r\nhost: a\r\n\r\n")
            await asyncio.sleep(HOLD_S)
            writer.transport.abort()

    await _at_once(flood, 500 * strength)


ATTACKS: tuple[Attack, ...] = (
    compressed_messages,
    unfinished_messages,
    unfinished_health_checks,
    calls_without_messages,
    many_connections,
    half_requests,
    half_bodies,
    idle_connections,
)


@contextlib.contextmanager
def attacker() -> Iterator[Callable[[Attack, Victim, int], Awaitable[None]]]:
    """A process of its own that attacks, so that it does not delay the honest client."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:

        async def attack(one: Attack, victim: Victim, strength: int) -> None:
            await asyncio.get_running_loop().run_in_executor(pool, _run, one, victim, strength)

        yield attack


def _run(attack: Attack, victim: Victim, strength: int) -> None:
    # Sending on connections that the victim has closed is what an attacker does.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    asyncio.run(attack(victim, strength))


async def burst(victim: Victim, calls: int, connections: int) -> Counter[str]:
    """Send calls of one candidate at once over gRPC; return their number by status and message."""
    statuses = Counter[str]()
    # No retries, so that every status is seen.
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with contextlib.AsyncExitStack() as stack:
        stubs = [
            GRPCInferenceServiceStub(
                await stack.enter_async_context(
                    grpc.aio.insecure_channel(f"127.0.0.1:{victim.grpc_port}", options=options)
                )
            )
            for _ in range(connections)
        ]
        message = grpc_objects([SAMPLE])

        async def ask(stub: GRPCInferenceServiceStub) -> None:
            try:
                await stub.ModelInfer(message, timeout=60)
                statuses["OK"] += 1
            except grpc.aio.AioRpcError as error:
                statuses[f"{error.code().name}: {error.details()}"] += 1

        await asyncio.gather(*(ask(stubs[number % connections]) for number in range(calls)))
    return statuses


@contextlib.asynccontextmanager
async def honest_client(victim: Victim) -> AsyncIterator[Honest]:
    """Ask one request after another over REST and gRPC while the block runs."""
    results = Honest()
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{victim.http_port}", timeout=HONEST_TIMEOUT_S) as http,
        grpc.aio.insecure_channel(f"127.0.0.1:{victim.grpc_port}") as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        await asyncio.wait_for(channel.channel_ready(), HONEST_TIMEOUT_S)

        async def over_rest() -> None:
            response = await http.post(V1_PREDICT, json={"instances": [SAMPLE]})
            response.raise_for_status()

        async def over_grpc() -> None:
            await stub.ModelInfer(grpc_objects([SAMPLE]), timeout=HONEST_TIMEOUT_S)

        async def keep_asking(protocol: str, ask: Callable[[], Awaitable[None]]) -> None:
            while True:
                start = time.monotonic()
                try:
                    await ask()
                    results.answered[protocol] += 1
                except (httpx.HTTPError, grpc.aio.AioRpcError) as error:
                    results.failed[f"{protocol}: {error!r}"] += 1
                finally:
                    seconds = time.monotonic() - start
                    results.slowest_s[protocol] = max(seconds, results.slowest_s.get(protocol, 0))
                await asyncio.sleep(0.02)

        tasks = [
            asyncio.create_task(keep_asking("REST", over_rest)),
            asyncio.create_task(keep_asking("gRPC", over_grpc)),
        ]
        try:
            yield results
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _send_all(connection: Http2Connection, left: dict[int, memoryview], *, end: bool = False) -> None:
    """Send data on streams as far as the server accepts it, for `HOLD_S`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(HOLD_S):
            while left and not connection.closed.is_set():
                unsent = {stream: connection.send(stream, data, end=end) for stream, data in left.items()}
                left = {stream: data for stream, data in unsent.items() if data}
                await connection.more_may_be_sent()


async def _at_once(flood: Callable[[], Awaitable[None]], times: int) -> None:
    await asyncio.gather(*(flood() for _ in range(times)))


def limit_memory(victim: Victim) -> str:
    """Put its processes into a cgroup with the manifest's limit; say if that was possible."""
    group = Path(f"/sys/fs/cgroup/memory/attacks-{victim.pid}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(f"{MEMORY_LIMIT_MIB}M")
        for pid in victim.pids:
            (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        return f"no limit on memory, because this needs root and cgroups of version 1: {error}"
    return f"memory limit {MEMORY_LIMIT_MIB} MiB"


async def main() -> int:
    """Attack a transformer within a memory limit, and print the figures."""
    parser = argparse.ArgumentParser(prog="make attacks", description=__doc__)
    parser.add_argument("--strength", type=int, default=3, help="times the short form (default: 3)")
    parser.add_argument("--workers", type=int, default=1, help="REST workers of the transformer (default: 1)")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(prefix="attacks-") as directory, attacker() as attack:
        work = Path(directory)
        bundle = make_pair("category_renamed", work / "storage").old
        async with (
            running_predictor(bundle, work / "predictor.log") as predictor,
            running_transformer(
                bundle, predictor.http_port, work / "log", f"--workers={options.workers}"
            ) as process,
        ):
            victim = Victim(process.http_port, process.grpc_port, process.pid)
            print(limit_memory(victim))
            print(
                f"{'attack':28}{'s':>6}{'MiB':>7}{'REST':>7}{'slowest':>9}{'gRPC':>7}{'slowest':>9}  failed"
            )
            for one in ATTACKS:
                victim.restart_peak()
                start = time.monotonic()
                async with honest_client(victim) as honest:
                    await attack(one, victim, options.strength)
                failed |= bool(honest.failed)
                columns = [f"{one.__name__:28}{time.monotonic() - start:6.0f}{victim.memory('VmHWM'):7.0f}"]
                columns += [
                    f"{honest.answered[name]:7}{honest.slowest_s.get(name, 0):8.2f}s" for name in PROTOCOLS
                ]
                print("".join(columns), "", dict(honest.failed) or 0, flush=True)
            for connections in (1, 64):
                statuses = await burst(victim, 10_000, connections)
                failed |= set(statuses) != {"OK"}
                print(f"10,000 calls at once on {connections} connections: {dict(statuses)}")
            print(f"{victim.memory():.0f} MiB afterwards")
    return failed


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
