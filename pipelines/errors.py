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
    from storage.bundles import StorageError
    from training.candidates import TaskError
    from training.publishing import TrainingError
    from training.selection import UnknownEstimatorError
    from training.stored import ModelFileError
    from training.table import DataError
    from training.threshold import ThresholdError
    from training.tuning import TuningError
    from transformer.bundle.format import BundleError

    return (
        BundleError,
        DataError,
        ModelFileError,
        PipelineError,
        RolloutError,
        StorageError,
        TargetError,
        TaskError,
        ThresholdError,
        TrainingError,
        TuningError,
        UnknownEstimatorError,
    )
