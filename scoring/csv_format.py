"""CSV files, by the rules of training."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from scoring.batch import CANDIDATES
from scoring.errors import ScoringError
from scoring.file_format import LINE_BYTES, PART_BYTES, Format, Read, Writer, line_ranges, read_range
from training.cells import finite_number


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
            yield from line_ranges(file, quoted=True)

    def columns(self, path: Path) -> tuple[str, ...]:
        """See `Format`."""
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            names = tuple(name.strip() for name in next(csv.reader(file), ()))
        if duplicates := [name for name in names if names.count(name) > 1]:
            raise ScoringError(f"{path}: duplicate column {duplicates[0]!r}")
        return names

    def read(self, path: Path, part: tuple[int, int], rows: int, fields: Mapping[str, str]) -> Iterator[Read]:
        """See `Format`."""
        names = self.columns(path)
        content = read_range(path, part)
        _check_text(path, part, content)
        malformed = _MalformedRows(path, part, content, names)
        blocks = pa_csv.open_csv(
            pa.BufferReader(content),
            pa_csv.ReadOptions(column_names=list(names), use_threads=False, block_size=LINE_BYTES),
            pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=malformed.skip),
            pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
        for block in blocks:
            for start in range(0, block.num_rows, rows):
                batch = block.slice(start, rows)
                yield batch, _cells(batch, fields)
            yield from malformed.taken()
        yield from malformed.taken()

    def writer(self, file: IO[bytes], schema: pa.Schema) -> Writer:
        """See `Format`."""
        return _CsvWriter(file, schema)


def _check_text(path: Path, part: tuple[int, int], content: bytes) -> None:
    """Refuse a text that Arrow cannot read, or that it would read as one row of many."""
    try:
        str(memoryview(content), "utf-8")
    except UnicodeDecodeError as error:
        line = _lines_before(path, part) + content.count(b"\n", 0, error.start) + 1
        raise ScoringError(
            f"line {line}: must be UTF-8, got the byte 0x{content[error.start]:02x}"
        ) from error
    if content.count(b'"') % 2:
        raise ScoringError("a quoted cell has no closing quote, or an unquoted one has a quote")


def _lines_before(path: Path, part: tuple[int, int]) -> int:
    """Return the number of lines of a file before a part."""
    blocks = range(0, part[0], PART_BYTES)
    return sum(read_range(path, (start, min(start + PART_BYTES, part[0]))).count(b"\n") for start in blocks)


class _MalformedRows:
    """The rows of a part that have too few or too many cells."""

    def __init__(self, path: Path, part: tuple[int, int], content: bytes, columns: Sequence[str]) -> None:
        self._path = path
        self._part = part
        self._content = content
        self._columns = columns
        self._rows: list[list[str]] = []
        self._errors: list[str] = []

    @cached_property
    def _lines(self) -> list[int]:
        """Line of the file on which each row ends. Blank lines outside quotes are no rows."""
        lines, quotes = [], 0
        for line, text in enumerate(self._content.split(b"\n"), _lines_before(self._path, self._part) + 1):
            quotes += text.count(b'"')
            if quotes % 2 == 0 and text.strip():
                lines.append(line)
        return lines

    def skip(self, row: Any) -> str:  # noqa: ANN401 (Arrow has no types)
        """Keep a row that Arrow has found, and let it go on."""
        try:
            cells = next(csv.reader([row.text]))
        except csv.Error:  # a cell that is too long
            cells = [row.text]
        last = len(self._columns) - 1
        # Too many cells become one, so that none is lost.
        self._rows.append([*cells[:last], *[""] * (last - len(cells)), ",".join(cells[last:])])
        line, expected, got = self._lines[row.number - 1], row.expected_columns, row.actual_columns
        self._errors.append(f"line {line}: must have {expected} cells, got {got}")
        return "skip"

    def taken(self) -> Iterator[Read]:
        """Yield the rows since the last call, with their errors."""
        if self._errors:
            columns = [pa.array(cells, pa.string()) for cells in zip(*self._rows, strict=True)]
            yield pa.RecordBatch.from_arrays(columns, [*self._columns]), pa.array(self._errors, pa.string())
        self._rows, self._errors = [], []


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
