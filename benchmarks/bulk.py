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
CONNECTIONS: Final = 8
CANDIDATES: Final = 1250
#: How often all the bodies are sent before time is taken, and then.
WARM_UPS: Final = 4
TIMES: Final = 6
_TIMEOUT_S: Final = 120


def candidates_per_second(url: str, bodies: Sequence[bytes]) -> float:
    """Candidates that are answered in a second, while there is always more to send.

    Raises
    ------
    NoAnswer
        If a request is not answered, or with another status than 200.
    """
    _send_all(url, bodies, WARM_UPS)
    start = time.perf_counter()
    _send_all(url, bodies, TIMES)
    return TIMES * len(bodies) * CANDIDATES / (time.perf_counter() - start)


def _send_all(url: str, bodies: Sequence[bytes], times: int) -> None:
    work: SimpleQueue[bytes] = SimpleQueue()
    for body in [*bodies] * times:
        work.put(body)
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        for done in [threads.submit(_send, url, work) for _ in range(CONNECTIONS)]:
            done.result()


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
