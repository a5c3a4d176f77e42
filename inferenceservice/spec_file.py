"""Reading a spec in an event loop, which a stop does not wait for."""

from collections.abc import Callable
from pathlib import Path

from inferenceservice import model_spec, spec
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
    return await _read(lambda: spec.read(path), path)


async def find(file: Path | None, model: str | None) -> InferenceService:
    """Return the InferenceService to run on this machine; see `model_spec.find_service`."""
    return await _read(lambda: model_spec.find_service(file, model), file or model)


async def _read(read: Callable[[], InferenceService], source: str | Path | None) -> InferenceService:
    try:
        return await run_cancellable(lambda _: read(), READ_TIMEOUT_S)
    except TimeoutError as error:
        raise SpecError(f"{source}: not read within {READ_TIMEOUT_S} s; check its file system") from error
