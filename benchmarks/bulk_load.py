"""Throughput of large requests: the time that a service takes for a fixed amount of work."""

import http.client
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from urllib.parse import urlsplit

from benchmarks.answer_check import NoAnswer

#: Connections that share the work.
CONNECTIONS = 8
#: Candidates per request.
CANDIDATES = 1250
#: Repetitions of all bodies before the measurement, and during it.
WARM_UPS = 4
REPETITIONS = 6
_TIMEOUT_S = 120


def candidates_per_second(url: str, bodies: Sequence[bytes]) -> float:
    """Measure how many candidates are answered per second while every connection is busy.

    Raises
    ------
    NoAnswer
        If an answer is missing or has another status than 200.
    """
    _send_all(url, bodies, WARM_UPS)
    start = time.perf_counter()
    _send_all(url, bodies, REPETITIONS)
    return REPETITIONS * len(bodies) * CANDIDATES / (time.perf_counter() - start)


def _send_all(url: str, bodies: Sequence[bytes], times: int) -> None:
    work: SimpleQueue[bytes] = SimpleQueue()
    for body in [*bodies] * times:
        work.put(body)
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        for done in [threads.submit(_send_queued, url, work) for _ in range(CONNECTIONS)]:
            done.result()


def _send_queued(url: str, work: SimpleQueue[bytes]) -> None:
    """Send bodies over one connection until the queue is empty."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    try:
        while True:
            connection.request("POST", parts.path, work.get_nowait(), {"content-type": "application/json"})
            response = connection.getresponse()
            content = response.read()
            if response.status != 200:
                raise NoAnswer(f"{response.status} {content[:200]!r}")
    except Empty:
        return
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(repr(error)) from error
    finally:
        connection.close()
