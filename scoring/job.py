"""A scoring job: the input's parts, and the output directory that takes no other job's parts."""

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from scoring.batch import holds_objects
from scoring.columns import check_free
from scoring.errors import ScoringError
from scoring.file_format import Format
from scoring.formats import FORMATS
from scoring.predictor import Source
from transformer.bundle.signature import same_spelling

#: File in the output that describes its job. Readers of data skip names with an underscore.
JOB_FILE = "_job.json"
#: File in the output of a complete job, as in Hadoop and Spark.
SUCCESS_FILE = "_SUCCESS"
#: Directory in the output with the counts of each part that is done.
COUNTS_DIRECTORY = "_counts"
#: Directory in the output with the rows whose candidates are invalid.
INVALID_DIRECTORY = "_invalid"
#: Ending of files that are not complete.
_PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the input, and so of the output.

    Attributes
    ----------
    number
        Position in the whole input, from 0.
    file
        Path of the input file.
    range
        Row groups or bytes of the file, see `scoring.file_format`.
    """

    number: int
    file: str
    range: tuple[int, int]

    @property
    def name(self) -> str:
        """Name of the part's output, without the ending."""
        return f"part-{self.number:06d}"


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs to score any part; small and picklable."""

    output: str
    suffix: str
    source: Source

    @property
    def format(self) -> Format:
        """Format of input and output."""
        return FORMATS[self.suffix]

    def output_of(self, part: Part) -> Path:
        """Return the path of a part's output, which is written last."""
        return Path(self.output, part.name + self.suffix)

    def invalid_of(self, part: Part) -> Path:
        """Return the path of a part's invalid rows."""
        return Path(self.output, INVALID_DIRECTORY, part.name + self.suffix)

    def counts_of(self, part: Part) -> Path:
        """Return the path of a part's counts."""
        return Path(self.output, COUNTS_DIRECTORY, f"{part.name}.json")


def plan(
    source: Source, fields: Mapping[str, str], inputs: Path, output: Path, required: Sequence[str] = ()
) -> tuple[Job, list[Part]]:
    """Cut the input into parts, and open the output directory.

    Parameters
    ----------
    fields
        V2 datatype of each raw field.
    inputs
        A file, or a directory of files of one format.
    required
        Fields without a default.

    Raises
    ------
    ScoringError
        If the input has no candidates, more than one format, or columns that cannot be scored; or if the
        output is inside the input, belongs to another job, or cannot be written.
    """
    if inputs.is_dir() and output.resolve().is_relative_to(inputs.resolve()):
        raise ScoringError(f"{output}: must be outside the input {inputs}, which another run would read")
    files = _files(inputs)
    suffixes = {file.suffix.lower() for file in files}
    if len(suffixes) > 1 or not suffixes <= set(FORMATS):
        raise ScoringError(
            f"{inputs}: must be files of one format ({', '.join(FORMATS)}), got {', '.join(sorted(suffixes))}"
        )
    job = Job(os.fspath(output.absolute()), suffixes.pop(), source)
    ranges = []
    for file in files:
        try:
            columns = job.format.columns(file)
            # Spark writes an empty file, without a header, for a partition without rows.
            if columns is not None and file.stat().st_size:
                _check_columns(file, columns, fields, required)
            ranges += [(file, found) for found in job.format.parts(file)]
        except (OSError, pa.ArrowException) as error:
            raise ScoringError(f"{file}: {error}") from error
    if not ranges:
        raise ScoringError(f"{inputs}: has no candidates")
    parts = [Part(number, os.fspath(file.absolute()), found) for number, (file, found) in enumerate(ranges)]
    try:
        _open_output(output, _description(job, inputs, files, parts))
    except OSError as error:
        raise ScoringError(f"{output}: must be a directory that can be written: {error}") from error
    return job, parts


def _files(inputs: Path) -> list[Path]:
    if inputs.is_file():
        return [inputs]
    if not inputs.is_dir():
        raise ScoringError(f"{inputs}: no such file or directory")
    found = [
        path
        for path in sorted(inputs.rglob("*"))
        if path.is_file() and not any(part[0] in "._" for part in path.relative_to(inputs).parts)
    ]
    if not found:
        raise ScoringError(f"{inputs}: has no files ({', '.join(FORMATS)})")
    return found


def _check_columns(
    file: Path, columns: Sequence[str], fields: Mapping[str, str], required: Sequence[str]
) -> None:
    """Refuse a table in which each row would have the same problem."""
    check_free(columns, f"{file}: has the column")
    if holds_objects(columns, fields):
        return
    for name, meant in same_spelling(columns, fields).items():
        if meant not in columns:
            raise ScoringError(f"{file}: column {name!r} must be spelled {meant!r}")
    if not set(fields).intersection(columns):
        raise ScoringError(f"{file}: has none of the fields {', '.join(fields)}; found: {', '.join(columns)}")
    missing = [name for name in required if name not in columns]
    if missing:
        names = ", ".join(map(repr, missing))
        raise ScoringError(f"{file}: the columns {names} are missing, found: {', '.join(columns)}")


def _description(job: Job, inputs: Path, files: Sequence[Path], parts: Sequence[Part]) -> dict[str, object]:
    """Return what must be equal for two runs to be the same job."""
    of_file: dict[str, list[tuple[int, int]]] = {os.fspath(file.absolute()): [] for file in files}
    for part in parts:
        of_file[part.file].append(part.range)
    return {
        "model": job.source.identity,
        "input": [
            {
                "file": os.fspath(file.relative_to(inputs)) if file != inputs else file.name,
                "bytes": file.stat().st_size,
                "modified_ns": file.stat().st_mtime_ns,
                "parts": of_file[os.fspath(file.absolute())],
            }
            for file in files
        ],
    }


def _open_output(output: Path, description: Mapping[str, object]) -> None:
    """Create the output directory for a job, or check that it is this job's."""
    own = (INVALID_DIRECTORY, COUNTS_DIRECTORY)
    for name in own:
        (output / name).mkdir(parents=True, exist_ok=True)
    text = json.dumps(description, indent=1) + "\n"
    existing = output / JOB_FILE
    if existing.exists():
        if existing.read_text() != text:
            raise ScoringError(
                f"{output}: holds the parts of another job ({JOB_FILE}: another model or input); "
                "choose an empty directory"
            )
        return
    others = [path.name for path in output.iterdir() if path.name not in own and path.suffix != _PARTIAL]
    if others:
        raise ScoringError(f"{output}: must be an empty directory, found {min(others)}")
    partial = partial_path(existing)
    partial.write_text(text)
    put_in_place(partial, existing)


def partial_path(path: Path) -> Path:
    """Return a new name for a file until it is complete."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{_PARTIAL}")


def put_in_place(partial: Path, path: Path) -> None:
    """Give a complete file its name, if another run of the job has not finished with the same file."""
    try:
        partial.replace(path)
    except FileNotFoundError:
        if not path.exists():
            raise


def finish(output: Path) -> None:
    """Mark a job as complete, and remove what killed workers left."""
    for partial in output.rglob(f".*{_PARTIAL}"):
        partial.unlink(missing_ok=True)
    (output / SUCCESS_FILE).touch()
