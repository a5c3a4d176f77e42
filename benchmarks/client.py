"""A load generator for machines without wrk, in a process of its own: the same arguments, the same result.

python -m benchmarks.client --clients N --seconds S URL FILE_OF_BODIES
"""

import argparse
import asyncio
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

from benchmarks.messages import Reader


@dataclass(slots=True)
class _Tally:
    latencies_s: list[float] = field(default_factory=list)
    failed: int = 0
    running: bool = True


class _Client(asyncio.Protocol):
    """One connection that sends the next request as soon as the last one is answered."""

    def __init__(self, requests: Iterator[bytes], tally: _Tally) -> None:
        self._requests = requests
        self._tally = tally
        self._reader = Reader()
        self._waits = False
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        answer = self._reader.feed(data)
        if answer is None:
            return
        self._waits = False
        if answer.status == 200:
            self._tally.latencies_s.append(time.perf_counter() - self._sent)
        else:
            self._tally.failed += 1
        if answer.last or not self._tally.running:
            self._transport.close()
        else:
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if self._waits and self._tally.running:
            self._tally.failed += 1
        if not self.closed.done():
            self.closed.set_result(None)

    def _send(self) -> None:
        self._waits = True
        self._sent = time.perf_counter()
        self._transport.write(next(self._requests))


async def _client(host: str, port: int, requests: Iterator[bytes], tally: _Tally) -> None:
    loop = asyncio.get_running_loop()
    while tally.running:
        try:
            _, client = await loop.create_connection(lambda: _Client(requests, tally), host, port)
        except OSError:
            tally.failed += 1
            await asyncio.sleep(0.05)
            continue
        await client.closed


async def _load(url: str, bodies: list[bytes], clients: int, seconds: float) -> dict[str, float]:
    parts = urlsplit(url)
    head = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
    requests = itertools.cycle(
        [f"{head}content-length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
    )
    tally = _Tally()
    start = time.perf_counter()
    tasks = [
        asyncio.create_task(_client(parts.hostname or "", parts.port or 80, requests, tally))
        for _ in range(clients)
    ]
    await asyncio.sleep(seconds)
    tally.running = False
    duration = time.perf_counter() - start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    latencies = sorted(tally.latencies_s)
    return {
        "requests": len(latencies),
        "seconds": duration,
        "p50_ms": _percentile(latencies, 0.5),
        "p90_ms": _percentile(latencies, 0.9),
        "p99_ms": _percentile(latencies, 0.99),
        "failed": tally.failed,
    }


def _percentile(ordered: list[float], share: float) -> float:
    return 1e3 * ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def main() -> None:
    """Send, and print what came of it as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("url")
    parser.add_argument("bodies", type=Path)
    options = parser.parse_args()
    bodies = options.bodies.read_bytes().splitlines()
    result = uvloop.run(_load(options.url, bodies, options.clients, options.seconds))
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
