"""Each kind of failure is logged at once, and many failures take few lines."""

import logging

import pytest

from transformer.errors import (
    InvalidRequest,
    NotImplementedHere,
    PredictorTooSlow,
    PredictorUnavailable,
    QueueFull,
)
from transformer.server.failure_log import INTERVAL_S, FailureLog


class Clock:
    """A clock that a test sets."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def lines():
    """Return the lines that were logged so far."""
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler = Handler()
    logger = logging.getLogger("kserve.transformer")
    logger.addHandler(handler)
    yield lambda: said
    logger.removeHandler(handler)


def test_the_first_failure_of_each_kind_is_logged_at_once(lines):
    log = FailureLog(Clock())
    log.record("503", QueueFull("the queue is full"))
    log.record("503", PredictorUnavailable("no verified predictor connection available"))
    log.record("504", PredictorTooSlow("the predictor did not answer in time"))
    assert lines() == [
        "503: the queue is full",
        "503: no verified predictor connection available",
        "504: the predictor did not answer in time",
    ]


def test_many_failures_of_a_kind_are_one_line_and_later_a_count(lines):
    clock = Clock()
    log = FailureLog(clock)
    for _ in range(10_000):
        log.record("503", QueueFull("full"))
        clock.seconds += INTERVAL_S / 20_000
    assert lines() == ["503: full"]
    clock.seconds = INTERVAL_S
    log.record("503", QueueFull("still full"))
    assert lines()[1:] == ["503: still full (9999 more since the last such line)"]
    clock.seconds = 3 * INTERVAL_S
    log.record("503", QueueFull("full again"))
    assert lines()[2:] == ["503: full again"]


def test_errors_of_the_caller_are_not_logged(lines):
    FailureLog().record("400", InvalidRequest("no JSON"))
    FailureLog().record("501", NotImplementedHere("explanations are not implemented"))
    assert lines() == []
