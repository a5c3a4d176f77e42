"""Send prediction requests to a system and compare its answers with scikit-learn's."""

import http.client
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any

import orjson

from benchmarks.models import ServedModel
from training.candidates import Candidate

#: Largest accepted difference from scikit-learn: other versions of numpy sum in another order.
TOLERANCE = 1e-6
_TIMEOUT_S = 60
#: Concurrent requests of a warm-up, enough to show a batch that is split wrongly.
_CONCURRENCY = 16


class NoAnswer(Exception):
    """No answer to a request, or an answer with another status than 200."""


class WrongAnswer(Exception):
    """An answer that differs from scikit-learn's; figures of such a system mean nothing."""


@dataclass(frozen=True)
class Request:
    """One form of a prediction request.

    Attributes
    ----------
    body
        Makes the JSON content of a request for some candidates.
    read
        Reads the positive class's probabilities from the JSON content of the answer.
    """

    path: str
    body: Callable[[Sequence[Candidate]], object]
    read: Callable[[Any], list[float]]


def encode(request: Request, candidates: Sequence[Candidate]) -> bytes:
    """Encode the body of a request for these candidates."""
    return orjson.dumps(request.body(candidates))


def request_probabilities(port: int, request: Request, candidates: Sequence[Candidate]) -> list[float]:
    """Send one request and return the probabilities in its answer.

    Raises
    ------
    NoAnswer
        If the answer is missing, invalid or has another status than 200.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        headers = {"content-type": "application/json"}
        connection.request("POST", request.path, encode(request, candidates), headers)
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise NoAnswer(f"{response.status} {content[:200]!r}")
        return request.read(orjson.loads(content))
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        raise NoAnswer(repr(error)) from error
    finally:
        connection.close()


class AnswerChecker:
    """Compares a system's answers with the expected probabilities.

    Parameters
    ----------
    expected
        The probability of each of `candidates`.
    """

    def __init__(self, candidates: Sequence[Candidate], expected: Sequence[float]) -> None:
        self._candidates = candidates
        self._expected = expected

    @classmethod
    def for_model(cls, model: ServedModel, candidates: Sequence[Candidate]) -> "AnswerChecker":
        """Make a checker that expects the probabilities of this model."""
        return cls(candidates, model.probabilities(candidates))

    def is_answering(self, port: int, request: Request) -> bool:
        """Return True if the server answers one request correctly, False if there is no answer.

        Raises
        ------
        WrongAnswer
            If the answer is wrong.
        """
        try:
            self._check(port, request, slice(0, 1))
        except NoAnswer:
            return False
        return True

    def warm_up(self, port: int, request: Request, seconds: float) -> None:
        """Send concurrent requests for single candidates, then one for all, and check every answer.

        Raises
        ------
        WrongAnswer
            If an answer differs from scikit-learn's.
        NoAnswer
            If an answer is missing.
        """
        end = time.monotonic() + seconds

        def send_repeatedly(first: int) -> None:
            for step in count():
                number = (first + step * _CONCURRENCY) % len(self._candidates)
                self._check(port, request, slice(number, number + 1))
                if time.monotonic() >= end:
                    break

        with ThreadPoolExecutor(_CONCURRENCY) as threads:
            list(threads.map(send_repeatedly, range(_CONCURRENCY)))
        self._check(port, request, slice(None))

    def _check(self, port: int, request: Request, part: slice) -> None:
        got = request_probabilities(port, request, self._candidates[part])
        expected = self._expected[part]
        correct = len(got) == len(expected) and all(
            abs(probability - known) <= TOLERANCE for probability, known in zip(got, expected, strict=True)
        )
        if not correct:
            raise WrongAnswer(
                f"{request.path}: wrong probabilities, expected {list(expected[:3])}…, got {got[:3]}…"
            )
