"""Many candidates through a service: a fixed amount of work, from the first byte sent to the last answer."""

import http.client
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Final
from urllib.parse import urlsplit

from benchmarks.asking import NoAnswer

#: Connections that share the work, and candidates of each request.
CONNECTIONS: Final = 4
CANDIDATES: Final = 1250
_TIMEOUT_S: Final = 120


def seconds(url: str, bodies: Sequence[bytes]) -> float:
    """Seconds until every body has been answered.

    Raises
    ------
    NoAnswer
        If one is not, or with another status than 200.
    """
    work: SimpleQueue[bytes] = SimpleQueue()
    for body in bodies:
        work.put(body)
    start = time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        for done in [threads.submit(_send, url, work) for _ in range(CONNECTIONS)]:
            done.result()
    return time.perf_counter() - start


def _send(url: str, work: SimpleQueue[bytes]) -> None:
    """Send what is left, over one connection."""
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
