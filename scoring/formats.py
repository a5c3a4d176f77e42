"""Formats of input and output: Parquet, CSV and JSON lines, in parts that are read and written in batches.

A batch is read in two forms: as it is in the file, for the output, and as candidates.
"""

import csv
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from scoring.batch import CANDIDATES
from scoring.columns import ERROR, PROBABILITY
from scoring.errors import ScoringError
from training.table import finite_number

#: Bytes of a part of a CSV or JSON lines file, about: some 300,000 candidates, 10 s of a forest.
PART_BYTES = 32 * 2**20
#: Rows that a worker holds until it writes a row group of Parquet.
ROW_GROUP_ROWS = 1 << 17
#: Maximum bytes of a line that are read at once.
_LINE_BYTES = 2**20

#: A batch as it is in the file, and its candidates.
Read = tuple[pa.RecordBatch, pa.RecordBatch]


class Writer(ABC):
    """Writes batches of one schema to a file."""

    @abstractmethod
    def write(self, batch: pa.RecordBatch) -> None:
        """Write a batch."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left, and the end of the file."""


class Format(ABC):
    """A file format."""

    @abstractmethod
    def parts(self, path: Path) -> Iterator[tuple[int, int]]:
        """Yield the ranges of a file that are scored separately; the same file gives the same ranges."""

    @abstractmethod
    def columns(self, path: Path) -> tuple[str, ...] | None:
        """Return the columns of a file; None if each candidate has its own fields."""

    @abstractmethod
    def read(self, path: Path, part: tuple[int, int], rows: int, fields: Mapping[str, str]) -> Iterator[Read]:
        """Yield a part's batches of at most `rows`; `fields` has the V2 datatype of each raw field."""

    @abstractmethod
    def writer(self, file: IO[bytes], schema: pa.Schema) -> Writer:
        """Return a writer of batches with this schema."""


class Parquet(Format):
    """Parquet; a part is a row group."""

    def parts(self, path: Path) -> Iterator[tuple[int, int]]:
        """See `Format`."""
        metadata = pq.read_metadata(path)
        groups = range(metadata.num_row_groups)
        return ((group, group + 1) for group in groups if metadata.row_group(group).num_rows)

    def columns(self, path: Path) -> tuple[str, ...]:
        """See `Format`."""
        return tuple(pq.read_schema(path).names)

    def read(self, path: Path, part: tuple[int, int], rows: int, fields: Mapping[str, str]) -> Iterator[Read]:
        """See `Format`."""
        schema = pq.read_schema(path)
        texts = [one.name for one in schema if one.name in fields and pa.types.is_string(one.type)]
        # The file has texts as codes already, and so the encoder takes them.
        with pq.ParquetFile(path, read_dictionary=texts) as file:
            for batch in file.iter_batches(rows, row_groups=range(*part), use_threads=False):
                yield batch.cast(schema), batch

    def writer(self, file: IO[bytes], schema: pa.Schema) -> Writer:
        """See `Format`."""
        return _ParquetWriter(file, schema)


class _ParquetWriter(Writer):
    """Collects batches, because each call of Arrow's writer makes a row group."""

    def __init__(self, file: IO[bytes], schema: pa.Schema) -> None:
        self._schema = schema
        # Probabilities hardly repeat: a dictionary of them takes time and space.
        repeating = [name for name in schema.names if name != PROBABILITY]
        self._writer = pq.ParquetWriter(file, schema, use_dictionary=repeating)
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)
        self._rows += batch.num_rows
        if self._rows >= ROW_GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._batches, self._schema)
        self._writer.write_table(table, row_group_size=self._rows)
        self._batches, self._rows = [], 0


class Csv(Format):
    """CSV with a header, by the rules of training; a part is a range of lines of about `PART_BYTES`.

    A cell of a numeric field that is not a number stays a text, for which the service's error says so.
    """

    def parts(self, path: Path) -> Iterator[tuple[int, int]]:
        """See `Format`. A line end inside quotes ends no row."""
        with path.open("rb") as file:
            quotes = 0
            while quotes % 2 or not file.tell():  # the header
                line = file.readline()
                quotes += line.count(b'"')
                if not line:
                    break
            yield from _ranges(file, quoted=True)

    def columns(self, path: Path) -> tuple[str, ...]:
        """See `Format`."""
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            names = tuple(name.strip() for name in next(csv.reader(file), ()))
        if duplicates := [name for name in names if names.count(name) > 1]:
            raise ScoringError(f"{path}: duplicate column {duplicates[0]!r}")
        return names

    def read(self, path: Path, part: tuple[int, int], rows: int, fields: Mapping[str, str]) -> Iterator[Read]:
        """See `Format`."""
        for block in self._blocks(path, part):
            for start in range(0, block.num_rows, rows):
                batch = block.slice(start, rows)
                yield batch, _cells(batch, fields)

    def _blocks(self, path: Path, part: tuple[int, int]) -> Iterator[pa.RecordBatch]:
        """Yield blocks of cells, all as texts."""
        names = self.columns(path)
        refused = []

        def refuse(row: Any) -> str:  # noqa: ANN401 (Arrow has no types)
            refused.append(f"a row must have {row.expected_columns} cells, got {row.actual_columns}")
            return "error"

        try:
            yield from pa_csv.open_csv(
                pa.BufferReader(_content(path, part)),
                pa_csv.ReadOptions(column_names=list(names), use_threads=False, block_size=_LINE_BYTES),
                pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse),
                pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
            )
        except pa.ArrowInvalid as error:
            # Arrow's message repeats the row, and candidates' values are personal data.
            raise ScoringError(refused[0] if refused else str(error)) from error

    def writer(self, file: IO[bytes], schema: pa.Schema) -> Writer:
        """See `Format`."""
        return _CsvWriter(file, schema)


class _CsvWriter(Writer):
    """Arrow's writer of CSV files."""

    def __init__(self, file: IO[bytes], schema: pa.Schema) -> None:
        self._writer = pa_csv.CSVWriter(file, schema)

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)

    def close(self) -> None:
        self._writer.close()


def _cells(batch: pa.RecordBatch, fields: Mapping[str, str]) -> pa.RecordBatch:
    """Return the candidates of rows of cells: numbers as numbers, blank cells as missing values."""
    columns = {}
    for name in batch.schema.names:
        trimmed = pc.utf8_trim_whitespace(batch[name])
        blank = pc.equal(trimmed, "")
        columns[name] = pc.if_else(blank, None, batch[name])
        if name in fields and fields[name] != "BYTES":
            try:
                numbers = pc.cast(pc.if_else(blank, None, trimmed), pa.float64())
            except pa.ArrowInvalid:
                return _mixed_cells(batch, fields)
            if not pc.all(pc.is_finite(numbers)).as_py():
                return _mixed_cells(batch, fields)
            columns[name] = numbers
    return pa.RecordBatch.from_pydict(columns)


def _mixed_cells(batch: pa.RecordBatch, fields: Mapping[str, str]) -> pa.RecordBatch:
    """Return candidates of which some have texts in place of numbers; an Arrow column cannot hold both."""
    columns = {
        name: [_cell(cell, number=fields.get(name, "BYTES") != "BYTES") for cell in batch[name].to_pylist()]
        for name in batch.schema.names
    }
    rows = zip(*columns.values(), strict=True)
    objects = [orjson.dumps(dict(zip(columns, row, strict=True))) for row in rows]
    return pa.RecordBatch.from_arrays([pa.array(objects, pa.binary())], [CANDIDATES])


def _cell(cell: str, *, number: bool) -> str | float | None:
    if not cell.strip():
        return None
    try:
        return finite_number(cell) if number else cell
    except ValueError:
        return cell


class JsonLines(Format):
    """A JSON object on each line; a part is a range of lines of about `PART_BYTES`."""

    def parts(self, path: Path) -> Iterator[tuple[int, int]]:
        """See `Format`."""
        with path.open("rb") as file:
            yield from _ranges(file, quoted=False)

    def columns(self, path: Path) -> None:
        """See `Format`."""

    def read(self, path: Path, part: tuple[int, int], rows: int, fields: Mapping[str, str]) -> Iterator[Read]:
        """See `Format`."""
        lines = [line for line in _content(path, part).splitlines() if line.strip()]
        for start in range(0, len(lines), rows):
            array = pa.array(lines[start : start + rows], pa.binary())
            batch = pa.RecordBatch.from_arrays([array], [CANDIDATES])
            yield batch, batch

    def writer(self, file: IO[bytes], schema: pa.Schema) -> Writer:
        """See `Format`."""
        return _JsonLinesWriter(file)


class _JsonLinesWriter(Writer):
    """Adds keys to each object. The rest of its line stays as it is, also how its numbers are written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, batch: pa.RecordBatch) -> None:
        lines = batch[CANDIDATES].to_pylist()
        added = batch.drop_columns([CANDIDATES]).to_pylist()
        self._file.writelines(map(_extended, lines, added))

    def close(self) -> None:
        self._file.flush()


def _extended(line: bytes, added: Mapping[str, Any]) -> bytes:
    """Return a line with an object's added keys; a line that is no object becomes the value of ``line``."""
    if ERROR in added and not _is_object(line):
        return orjson.dumps({"line": line.decode(errors="replace"), **added}) + b"\n"
    head = line.strip()[:-1].rstrip()
    return head + (b"" if head == b"{" else b",") + orjson.dumps(added)[1:] + b"\n"


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def _ranges(file: IO[bytes], *, quoted: bool) -> Iterator[tuple[int, int]]:
    """Yield ranges of whole rows from the file's position on."""
    start = end = file.tell()
    quotes = 0
    while line := file.readline(_LINE_BYTES):
        end += len(line)
        if quoted:
            quotes += line.count(b'"')
        if end - start >= PART_BYTES and line.endswith(b"\n") and quotes % 2 == 0:
            yield start, end
            start = end
    if end > start:
        yield start, end


def _content(path: Path, part: tuple[int, int]) -> bytes:
    start, end = part
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


#: Formats by the ending of a file's name.
FORMATS: Mapping[str, Format] = {
    ".parquet": Parquet(),
    ".csv": Csv(),
    ".jsonl": JsonLines(),
    ".ndjson": JsonLines(),
}
