"""Load generator for machines without wrk, and for systems that are too slow for it.

python -m benchmarks.load_client --clients N --seconds S URL FILE_OF_BODIES

The measurement begins when each client has got one answer: a system that works on all requests at the same
time answers none of them before that.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.http_messages import MessageReader

#: Seconds after which the measurement begins, even if some clients have no answer yet.
_FIRST_ANSWERS_TIMEOUT_S = 30


@dataclass(slots=True)
class _Figures:
    """Latencies of the answers and number of failures.

    Attributes
    ----------
    unanswered
        Clients that wait for their first answer.
    measuring
        Set once the measurement has begun.
    """

    unanswered: set[int]
    measuring: asyncio.Event = field(default_factory=asyncio.Event)
    latencies_s: list[float] = field(default_factory=list)
    failed: int = 0
    running: bool = True

    def record(self, client: int, seconds: float, status: int) -> None:
        if status != 200:
            self.failed += 1
        elif self.measuring.is_set():
            self.latencies_s.append(seconds)
        self.unanswered.discard(client)
        if not self.unanswered:
            self.measuring.set()


class _Connection(asyncio.Protocol):
    """A client that sends its next request as soon as it has the answer to the last one."""

    def __init__(self, client: int, requests: Iterator[bytes], figures: _Figures) -> None:
        self._client = client
        self._requests = requests
        self._figures = figures
        self._reader = MessageReader()
        self._waiting = False
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        answer = self._reader.feed(data)
        if answer is None:
            return
        self._waiting = False
        self._figures.record(self._client, time.perf_counter() - self._sent, answer.status)
        if answer.last:
            self._transport.close()
        else:
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if self._waiting and self._figures.running:
            self._figures.failed += 1
        if not self.closed.done():
            self.closed.set_result(None)

    def _send(self) -> None:
        self._waiting = True
        self._sent = time.perf_counter()
        self._transport.write(next(self._requests))


async def _client(
    number: int, address: tuple[str, int], requests: Iterator[bytes], figures: _Figures
) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(number, requests, figures), *address
            )
        except OSError:
            figures.failed += 1
            await asyncio.sleep(0.05)
            continue
        await connection.closed


async def _load(url: str, bodies: list[bytes], clients: int, seconds: float) -> dict[str, float]:
    parts = urlsplit(url)
    head = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
    requests = itertools.cycle(
        [f"{head}content-length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
    )
    figures = _Figures(set(range(clients)))
    address = (parts.hostname or "", parts.port or 80)
    tasks = [asyncio.create_task(_client(number, address, requests, figures)) for number in range(clients)]
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(figures.measuring.wait(), _FIRST_ANSWERS_TIMEOUT_S)
    figures.measuring.set()
    start = time.perf_counter()
    await asyncio.sleep(seconds)
    figures.running = False
    duration = time.perf_counter() - start
    latencies = sorted(figures.latencies_s)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "requests": len(latencies),
        "seconds": duration,
        "p50_ms": _percentile(latencies, 0.5),
        "p90_ms": _percentile(latencies, 0.9),
        "p99_ms": _percentile(latencies, 0.99),
        "failed": figures.failed,
    }


def _percentile(ordered: list[float], share: float) -> float:
    return 1e3 * ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def main() -> None:
    """Send the load and print its figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, required=True, help="number of connections")
    parser.add_argument("--seconds", type=float, required=True, help="duration of the measurement")
    parser.add_argument("url")
    parser.add_argument("bodies", type=Path, help="file with one JSON body per line")
    options = parser.parse_args()
    bodies = options.bodies.read_bytes().splitlines()
    result = uvloop.run(_load(options.url, bodies, options.clients, options.seconds))
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
