"""A step of the pipeline: its messages begin with its name, and its errors also with `ERROR`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Begins an error, after the step's name.
ERROR = "ERROR: "


class PipelineError(Exception):
    """A step that cannot go on; the message says what came, what is expected and what to do."""


@contextmanager
def step(name: str) -> Iterator[Callable[[str], None]]:
    """Run a step: yield a function that prints a message, and end the process after an expected error.

    `make pipeline` shows messages and errors, and keeps all other lines of a step in its log.
    """
    try:
        yield lambda text: print(_lines(f"{name}: ", text), flush=True)
    except Exception as error:
        if not isinstance(error, _expected()):
            raise
        sys.exit(_lines(f"{name}: {ERROR}", str(error)))


def _lines(prefix: str, text: str) -> str:
    return "\n".join(f"{prefix}{line}" for line in text.splitlines())


def _expected() -> tuple[type[Exception], ...]:
    from inferenceservice.rollout import RolloutError
    from inferenceservice.rollout_target import TargetError
    from training.train import ERRORS

    return (*ERRORS, PipelineError, RolloutError, TargetError)
