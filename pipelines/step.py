"""A step of the pipeline: it says what matters in lines that begin with its name, also when it fails."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class PipelineError(Exception):
    """A step that cannot go on; the message says what came, what is expected and what to do."""


@contextmanager
def step(name: str) -> Iterator[Callable[[str], None]]:
    """Run a step: yield a function that says what matters, and end the process after an expected error.

    `make pipeline` shows the lines that begin with the step's name, and keeps the others in its log.
    """
    try:
        yield lambda text: print(_lines(name, text), flush=True)
    except Exception as error:
        if not isinstance(error, _expected()):
            raise
        sys.exit(_lines(name, str(error)))


def _lines(name: str, text: str) -> str:
    return "\n".join(f"{name}: {line}" for line in text.splitlines())


def _expected() -> tuple[type[Exception], ...]:
    from inferenceservice.rollout import RolloutError
    from inferenceservice.rollout_target import TargetError
    from training.train import ERRORS

    return (*ERRORS, PipelineError, RolloutError, TargetError)
