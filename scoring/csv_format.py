"""CSV files, by the rules of training."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from scoring.batch import CANDIDATES
from scoring.errors import ScoringError
from scoring.file_format import PART_BYTES, Format, Read, Writer, ranges, read_range
from training.cells import LIST, boolean_of, elements, finite_number

#: Types of values that Arrow does not read from texts as training does.
_ARROW_TYPES = {"BOOL": pa.bool_(), LIST: pa.list_(pa.string())}
#: Maximum bytes of a row; Arrow reads blocks of this size.
ROW_BYTES = 2**20
#: Text up to its end, or up to the quote of a cell that it does not close. Only a quote at the start of a
#: cell quotes it.
_CLOSED = re.compile(rb"""[^"]*+(?:(?:(?<![^,\r\n])"[^"]*+(?:""[^"]*+)*+"|(?<=[^,\r\n])")[^"]*+)*+""")


class Csv(Format):
    """CSV with a header, by the rules of training; a part is a range of lines of about `PART_BYTES`.

    A cell that is not of its field's type stays a text, for which the service's error says so.
    """

    def parts(self, path: Path) -> Iterator[tuple[int, int]]:
        """See `Format`. A line end inside quotes ends no row."""
        with path.open("rb") as file:
            header = _header(file)
            yield from ranges(len(header), _ends_of_rows(file, header.count(b"\n")))

    def columns(self, path: Path) -> tuple[str, ...]:
        """See `Format`."""
        with path.open("rb") as file:
            header = _header(file)
        _check_text(header, lambda: 0)
        rows = [*csv.reader(io.StringIO(header.decode("utf-8-sig"), newline=""))]
        if len(rows) > 1:
            raise ScoringError("line 1: must end with a line feed, got a carriage return only")
        return tuple(name.strip() for row in rows for name in row)

    def read(self, path: Path, part: tuple[int, int], rows: int, fields: Mapping[str, str]) -> Iterator[Read]:
        """See `Format`."""
        names = self.columns(path)
        content = read_range(path, part)
        lines_before = cache(partial(_lines_before, path, part))
        _check_text(content, lines_before)
        malformed = _MalformedRows(content, lines_before, names)
        blocks = pa_csv.open_csv(
            pa.BufferReader(content),
            pa_csv.ReadOptions(column_names=list(names), use_threads=False, block_size=ROW_BYTES),
            pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=malformed.skip),
            pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
        for block in blocks:
            for start in range(0, block.num_rows, rows):
                batch = block.slice(start, rows)
                yield batch, _cells(batch, fields)
        yield from malformed.batches(rows)

    def writer(self, file: IO[bytes], schema: pa.Schema) -> Writer:
        """See `Format`."""
        return _CsvWriter(file, schema)


def _header(file: IO[bytes]) -> bytes:
    """Read the first row of a file, which may have several lines."""
    lines = []
    for line, is_end in _ends_of_rows(file, 0):
        lines.append(line)
        if is_end:
            break
    return b"".join(lines)


def _ends_of_rows(file: IO[bytes], before: int) -> Iterator[tuple[bytes, bool]]:
    """Yield each line, and True if it ends a row: its last cell is not quoted, or the quote is closed.

    Raises
    ------
    ScoringError
        If a quote is never closed, or a row is too long; `before` is the number of lines before, to name the
        line.
    """
    opened = size = 0
    for number, line in enumerate(iter(partial(file.readline, ROW_BYTES + 1), b""), before + 1):
        size += len(line)
        opened = 0 if _is_closed(line, quoted=opened > 0) else opened or number
        if size > ROW_BYTES:
            hint = "; is a closing quote missing?" if opened else ""
            raise ScoringError(f"line {opened or number}: a row has more than {ROW_BYTES:,} bytes{hint}")
        yield line, not opened
        if not opened:
            size = 0
    if opened:
        raise ScoringError(f"line {opened}: a quoted cell has no closing quote")


def _is_closed(text: bytes, *, quoted: bool) -> bool:
    """Return whether a text, which may begin inside a quoted cell, ends outside."""
    if b'"' not in text:
        return not quoted
    if quoted:
        text = b'"' + text
    closed = _CLOSED.match(text)
    return closed is not None and closed.end() == len(text)


def _check_text(content: bytes, lines_before: Callable[[], int]) -> None:
    """Refuse a text that is not UTF-8, by its line."""
    try:
        str(memoryview(content), "utf-8")
    except UnicodeDecodeError as error:
        line = lines_before() + content.count(b"\n", 0, error.start) + 1
        raise ScoringError(
            f"line {line}: must be UTF-8, got the byte 0x{content[error.start]:02x}"
        ) from error


def _lines_before(path: Path, part: tuple[int, int]) -> int:
    """Return the number of lines of a file before a part."""
    blocks = range(0, part[0], PART_BYTES)
    return sum(read_range(path, (start, min(start + PART_BYTES, part[0]))).count(b"\n") for start in blocks)


class _MalformedRows:
    """The rows of a part that have too few or too many cells."""

    def __init__(self, content: bytes, lines_before: Callable[[], int], columns: Sequence[str]) -> None:
        self._content = content
        self._lines_before = lines_before
        self._columns = columns
        #: Number of each row in the part, its text and its number of cells.
        self._rows: list[tuple[int, str, int]] = []

    def skip(self, row: Any) -> str:  # noqa: ANN401 (Arrow has no types)
        """Keep a row that Arrow has found, and let it go on."""
        self._rows.append((row.number, row.text, row.actual_columns))
        return "skip"

    def batches(self, size: int) -> Iterator[Read]:
        """Yield the rows with their errors, at most `size` at a time."""
        lines = self._lines() if self._rows else ()
        expected = len(self._columns)
        for start in range(0, len(self._rows), size):
            rows = self._rows[start : start + size]
            cells = zip(*(self._cells(text) for _, text, _ in rows), strict=True)
            errors = [f"line {lines[row - 1]}: must have {expected} cells, got {got}" for row, _, got in rows]
            columns = [pa.array(column, pa.string()) for column in cells]
            yield pa.RecordBatch.from_arrays(columns, [*self._columns]), pa.array(errors, pa.string())

    def _lines(self) -> list[int]:
        """Return the line of the file on which each row ends. Arrow takes no blank line for a row."""
        lines = []
        quoted = False
        for line, text in enumerate(self._content.split(b"\n"), self._lines_before() + 1):
            for row in text.split(b"\r"):  # ends a row, too
                was_quoted, quoted = quoted, not _is_closed(row, quoted=quoted)
                if not quoted and (row or was_quoted):
                    lines.append(line)
        return lines

    def _cells(self, text: str) -> list[str]:
        """Return a row's cells. Too many become one, so that none is lost."""
        try:
            cells = next(csv.reader([text]))
        except csv.Error:  # a cell that is too long
            cells = [text]
        last = len(self._columns) - 1
        return [*cells[:last], *[""] * (last - len(cells)), ",".join(cells[last:])]


class _CsvWriter(Writer):
    """Arrow's writer of CSV files."""

    def __init__(self, file: IO[bytes], schema: pa.Schema) -> None:
        self._writer = pa_csv.CSVWriter(file, schema)

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)

    def close(self) -> None:
        self._writer.close()

    def discard(self) -> None:
        pass


def _cells(batch: pa.RecordBatch, fields: Mapping[str, str]) -> pa.RecordBatch:
    """Return the candidates of rows of cells, as in training; blank cells are missing values."""
    datatypes = {name: fields.get(name, "BYTES") for name in batch.schema.names}
    columns = {}
    for name, datatype in datatypes.items():
        columns[name] = _column(batch[name], datatype)
        if columns[name] is None:
            return _mixed_cells(batch, datatypes)
    return pa.RecordBatch.from_pydict(columns)


def _column(cells: pa.StringArray, datatype: str) -> pa.Array | None:
    """Return the values of cells; None if some are not of the type."""
    trimmed = pc.utf8_trim_whitespace(cells)
    texts = pc.if_else(pc.equal(trimmed, ""), None, trimmed)
    if datatype == "BYTES":
        return texts
    try:
        if datatype in _ARROW_TYPES:
            coded = texts.dictionary_encode()
            values = [_value(text, datatype) for text in coded.dictionary.to_pylist()]
            if any(isinstance(value, str) for value in values):
                return None
            return pa.array(values, _ARROW_TYPES[datatype]).take(coded.indices)
        numbers = pc.cast(texts, pa.float64())
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None
    return numbers if pc.all(pc.is_finite(numbers)).as_py() else None


def _mixed_cells(batch: pa.RecordBatch, datatypes: Mapping[str, str]) -> pa.RecordBatch:
    """Return candidates of which some have texts in place of other values, as no Arrow column has."""
    columns = {
        name: [_value(cell.strip(), datatype) for cell in batch[name].to_pylist()]
        for name, datatype in datatypes.items()
    }
    rows = zip(*columns.values(), strict=True)
    objects = [orjson.dumps(dict(zip(columns, row, strict=True))) for row in rows]
    return pa.RecordBatch.from_arrays([pa.array(objects, pa.binary())], [CANDIDATES])


def _value(text: str, datatype: str) -> object:
    """Return the value of a cell; its text if that is not of the type, for which there is an error."""
    if not text:
        return None
    try:
        if datatype == "BYTES":
            return text
        if datatype == "BOOL":
            value = boolean_of(text)
            return text if value is None else value
        return elements(text) if datatype == LIST else finite_number(text)
    except ValueError:
        return text
