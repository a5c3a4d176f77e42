"""Score one part: read it, score its batches, write valid and invalid rows, in constant memory."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from scoring.batch import answer, refusal
from scoring.columns import ERROR
from scoring.errors import ScoringError
from scoring.file_format import Format, Writer
from scoring.job import Job, Part, partial_path, put_in_place, write_whole
from scoring.predictor import opened
from storage.errors import StorageError
from transformer.bundle.format import BundleError


@dataclass(frozen=True, slots=True)
class PartResult:
    """Counts of one part.

    Attributes
    ----------
    valid, invalid
        Numbers of rows.
    found
        True if an earlier run has scored it.
    error
        Text of the error that stopped it, else None.
    """

    valid: int
    invalid: int
    found: bool = False
    error: str | None = None


def found_part(job: Job, part: Part) -> PartResult | None:
    """Return the counts of a part that is done, else None: its output and its counts must exist."""
    if not (job.output_of(part).exists() and job.counts_of(part).exists()):
        return None
    return PartResult(**json.loads(job.counts_of(part).read_bytes()), found=True)


def score_part(job: Job, part: Part) -> PartResult:
    """Score a part, unless its output exists.

    Invalid rows and counts are written first, the output last and as a whole. So a worker that is killed
    changes nothing, and two workers with the same part write the same files.

    Raises
    ------
    ScoringError
        If the part cannot be read, scored or written; the message names its file.
    """
    if (found := found_part(job, part)) is not None:
        return found
    predictor = opened(job.source)
    valid = invalid = 0
    try:
        with (
            _output(job.output_of(part), job.format) as answered,
            _output(job.invalid_of(part), job.format) as refused,
        ):
            file = Path(part.file)
            for batch, candidates in job.format.read(
                file, part.range, predictor.batch_rows, predictor.fields
            ):
                answers = (
                    answer(candidates, predictor)
                    if isinstance(candidates, pa.RecordBatch)
                    else refusal(candidates, predictor)
                )
                scored = _beside(batch, answers.drop_columns([ERROR]))
                valid += answers[ERROR].null_count
                if answers[ERROR].null_count < batch.num_rows:
                    is_valid = pc.is_null(answers[ERROR])
                    scored = scored.filter(is_valid)
                    refused.write(_beside(batch, answers.select([ERROR])).filter(pc.invert(is_valid)))
                    invalid += is_valid.false_count
                answered.write(scored)
            refused.keep = invalid > 0
            write_whole(job.counts_of(part), json.dumps({"valid": valid, "invalid": invalid}))
    except (OSError, pa.ArrowException, ScoringError) as error:
        raise ScoringError(f"{part.file} ({part.name}): {error}") from error
    return PartResult(valid, invalid)


def try_part(job: Job, part: Part) -> PartResult:
    """Score a part as `score_part` does; an error is in the result.

    Engines repeat a task that raises, and bury its error under their own.
    """
    try:
        return score_part(job, part)
    except (BundleError, ScoringError, StorageError) as error:
        return PartResult(0, 0, error=str(error))


def _beside(batch: pa.RecordBatch, answers: pa.RecordBatch) -> pa.RecordBatch:
    schema = pa.schema([*batch.schema, *answers.schema], batch.schema.metadata)
    return pa.RecordBatch.from_arrays([*batch.columns, *answers.columns], schema=schema)


class _Output:
    """A file that is written when its first batch is known.

    Attributes
    ----------
    keep
        False to leave no file.
    """

    def __init__(self, path: Path, file_format: Format) -> None:
        self.keep = True
        self._path = path
        self._partial = partial_path(path)
        self._format = file_format
        self._file = self._partial.open("xb")
        self._writer: Writer | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Write a batch, which may be empty."""
        if self._writer is None:
            self._writer = self._format.writer(self._file, batch.schema)
        if batch.num_rows:
            self._writer.write(batch)

    def end(self) -> None:
        """Move the complete file to its place."""
        if self._writer is not None:
            self._writer.close()
        self._file.close()
        if self.keep:
            put_in_place(self._partial, self._path)

    def discard(self) -> None:
        """Remove what is not complete, also if the disk is full."""
        if self._writer is not None:
            self._writer.discard()
        with suppress(OSError):  # of what is not written yet
            self._file.close()
        self._partial.unlink(missing_ok=True)


@contextmanager
def _output(path: Path, file_format: Format) -> Iterator[_Output]:
    output = _Output(path, file_format)
    try:
        yield output
        output.end()
    finally:
        output.discard()
