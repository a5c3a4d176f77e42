"""Errors of the steps, which end a step with one line instead of a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class PipelineError(Exception):
    """A step that cannot go on; the message says what came, what is expected and what to do."""


@contextmanager
def exit_on_error(step: str) -> Iterator[None]:
    """End the process of a step with the message of an expected error."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, _expected()):
            raise
        sys.exit(f"{step}: {error}")


def _expected() -> tuple[type[Exception], ...]:
    from inferenceservice.rollout import RolloutError
    from inferenceservice.rollout_target import TargetError
    from training.train import ERRORS

    return (*ERRORS, PipelineError, RolloutError, TargetError)
