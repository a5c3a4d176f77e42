"""What a system is asked, how its answer is read, and whether it is right."""

import http.client
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import orjson

from benchmarks.models import ServedModel
from training.candidates import Candidate

#: How far an answer may be from scikit-learn's: other versions of numpy add up in another order.
TOLERANCE: Final = 1e-6
_TIMEOUT_S: Final = 60
#: Requests at the same time when answers are checked: a batch that is split wrongly shows.
_AT_ONCE: Final = 16


class NoAnswer(Exception):
    """A request without an answer, or with another status than 200."""


class WrongAnswer(Exception):
    """An answer that is not scikit-learn's; the numbers of such a system would mean nothing."""


@dataclass(frozen=True)
class Request:
    """One way to ask for candidates' probabilities.

    Attributes
    ----------
    body
        The JSON content that asks for some candidates.
    read
        The positive class's probabilities in an answer's JSON content.
    """

    path: str
    body: Callable[[Sequence[Candidate]], object]
    read: Callable[[Any], list[float]]


def encode(request: Request, candidates: Sequence[Candidate]) -> bytes:
    """A request's body."""
    return orjson.dumps(request.body(candidates))


def ask(port: int, request: Request, candidates: Sequence[Candidate]) -> list[float]:
    """The probabilities that a system answers.

    Raises
    ------
    NoAnswer
        If there is no such answer.
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


class Judge:
    """Holds a system's answers against scikit-learn's.

    Parameters
    ----------
    expected
        The probability of each of `candidates`.
    """

    def __init__(self, candidates: Sequence[Candidate], expected: Sequence[float]) -> None:
        self._candidates = candidates
        self._expected = expected

    @classmethod
    def of(cls, model: ServedModel, candidates: Sequence[Candidate]) -> "Judge":
        """One that expects what the model says."""
        return cls(candidates, model.probabilities(candidates))

    def answers(self, port: int, request: Request) -> bool:
        """Whether there is an answer, which is then right.

        Raises
        ------
        WrongAnswer
            If it is not.
        """
        try:
            self._check(port, request, slice(0, 1))
        except NoAnswer:
            return False
        return True

    def warm_up(self, port: int, request: Request, seconds: float) -> None:
        """Ask for some time with several requests at once, for single candidates and for all.

        Raises
        ------
        WrongAnswer
            If an answer is not scikit-learn's.
        NoAnswer
            If one does not come.
        """
        end = time.monotonic() + seconds

        def keep_asking(first: int) -> None:
            number = first
            while number == first or time.monotonic() < end:
                self._check(port, request, slice(number, number + 1))
                number = (number + _AT_ONCE) % len(self._candidates)

        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(keep_asking, range(_AT_ONCE)))
        self._check(port, request, slice(None))

    def _check(self, port: int, request: Request, part: slice) -> None:
        got = ask(port, request, self._candidates[part])
        expected = self._expected[part]
        right = len(got) == len(expected) and all(
            abs(probability - known) <= TOLERANCE for probability, known in zip(got, expected, strict=True)
        )
        if not right:
            raise WrongAnswer(f"{request.path} answered {got[:3]}…, scikit-learn says {list(expected[:3])}…")
