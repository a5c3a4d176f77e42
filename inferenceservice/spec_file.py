"""Reading a spec in an event loop, which a stop does not wait for."""

from pathlib import Path

from inferenceservice import spec
from inferenceservice.cancellable_thread import run_cancellable
from inferenceservice.spec import InferenceService, SpecError

#: Seconds; `kubectl kustomize` may fetch remote resources.
READ_TIMEOUT_S = 180


async def read(path: str | Path) -> InferenceService:
    """Read a spec; see `spec.read`.

    Raises
    ------
    SpecError
        If it cannot be read in time, or is invalid.
    """
    try:
        return await run_cancellable(lambda _: spec.read(path), READ_TIMEOUT_S)
    except TimeoutError as error:
        raise SpecError(f"{path}: not read within {READ_TIMEOUT_S} s; check its file system") from error
