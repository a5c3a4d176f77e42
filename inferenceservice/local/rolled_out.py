"""The versions that were rolled out last, which the local service serves again after a stop.

They are in the run directory, beside the logs: the spec is the user's file. They hold as long as the spec
names the same bundle as before: a spec with another one is the newer wish.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from inferenceservice.rollout_target import Canary, Progress
from storage.uris import canonical, shown
from transformer.bundle.regular_file import read_file

#: Name of the file in the directory that `placement up` runs in.
ROLLED_OUT_FILE = "rolled_out.json"
#: Sources of the URI that a start serves without `--model`; see `choose_version`.
THE_SPEC, THE_LAST_START = "the spec", "the last start"
_MAX_BYTES = 10**6


class RolledOut(BaseModel):
    """The result of the last rollout, rollback or apply. URIs are canonical; see `storage.uris`.

    Attributes
    ----------
    spec_uri
        Bundle that the spec named then.
    uri
        Bundle of the predictor.
    history
        Bundles that the predictor served before, newest last.
    canary
        Canary in progress.
    at
        Time of the change.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    spec_uri: str
    uri: str
    history: tuple[str, ...]
    canary: Canary | None
    at: AwareDatetime


class _Content(BaseModel):
    """Content of the file: the last rollout of each InferenceService, by ``namespace/name``.

    Attributes
    ----------
    started
        Bundle of the last start; None if a spec file named it.
    """

    services: dict[str, RolledOut] = Field(default_factory=dict)
    started: str | None = None


class RolledOutFile:
    """The file that remembers the last rollout of an InferenceService.

    Parameters
    ----------
    path
        The file; other InferenceServices may have entries in it.
    service
        ``namespace/name`` of the InferenceService.
    spec_uri
        Bundle that its spec names now; `record` stores it, too.
    """

    def __init__(self, path: Path, service: str, spec_uri: str) -> None:
        self.spec_uri = canonical(spec_uri)
        self._path = path
        self._service = service

    def read(self) -> RolledOut | None:
        """Return the last rollout, or None if there was none.

        Raises
        ------
        ValueError
            If the file cannot be read; the message names it.
        """
        return _read(self._path).services.get(self._service)

    def record(self, uri: str, history: Sequence[str], canary: Canary | None) -> None:
        """Record what serves now. A file that cannot be read is replaced.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        content = _readable(self._path)
        content.services[self._service] = RolledOut(
            spec_uri=self.spec_uri,
            uri=uri,
            history=tuple(history),
            canary=canary,
            at=datetime.now().astimezone(),
        )
        _write(self._path, content)


def last_started(path: Path) -> str | None:
    """Return the bundle of the last start; None if a spec file named it."""
    uri = _readable(path).started
    return None if uri is None else shown(uri)


def record_start(path: Path, uri: str | None) -> None:
    """Record the bundle of a start; None if a spec file named it.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    content = _readable(path)
    started = None if uri is None else canonical(uri)
    if content.started != started:
        content.started = started
        _write(path, content)


def _read(path: Path) -> _Content:
    try:
        return _Content.model_validate_json(read_file(path, _MAX_BYTES))
    except FileNotFoundError:
        return _Content()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        raise ValueError(f"{path}: is not a record of rollouts") from error


def _readable(path: Path) -> _Content:
    """Return the content of a file, or none if it cannot be read."""
    try:
        return _read(path)
    except ValueError:
        return _Content()


def _write(path: Path, content: _Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(content.model_dump_json(indent=1) + "\n")
    new.replace(path)


def choose_version(
    model: str | None, file: RolledOutFile, progress: Progress, *, source: str = THE_SPEC
) -> RolledOut | None:
    """Say which version starts and why; return the last rollout if that is what starts.

    Parameters
    ----------
    model
        Bundle that the user has named for this start.
    source
        Where the URI of the file's spec comes from.
    """
    last = None
    try:
        last = file.read()
    except ValueError as error:
        progress(f"{error}; what was rolled out last is not known")
    if model is not None:
        progress(f"starting {shown(model)}: --model names it{_passed_over(last, model)}")
        return None
    spec = shown(file.spec_uri)
    if last is None or (last.uri == last.spec_uri == file.spec_uri and last.canary is None):
        progress(f"starting {spec}: {source} names it")
        return last
    if last.spec_uri != file.spec_uri:
        why = "the spec has been changed to it" if source == THE_SPEC else f"{source} names it"
        progress(f"starting {spec}: {why}{_passed_over(last, file.spec_uri)}")
        return None
    share = f", with {last.canary.percent} % for {shown(last.canary.uri)}" if last.canary else ""
    progress(
        f"starting {shown(last.uri)}{share}: it was rolled out on {last.at:%d %B at %H:%M}; {source} names "
        f"{spec}, which --model {spec} starts"
    )
    return last


def _passed_over(last: RolledOut | None, started: str) -> str:
    if last is None or last.uri == canonical(started):
        return ""
    return f"; {shown(last.uri)}, which was rolled out on {last.at:%d %B at %H:%M}, does not start"
