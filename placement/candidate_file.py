"""Candidates of a file, and the place in the file of each problem that the service reports.

A file is read by the rules of training: columns in any order, unknown columns passed over, an empty cell a
missing value. The client rejects only files that are not tables and cells that are not numbers; the service
validates everything else. That includes missing columns, because the metadata does not tell which fields have
a default: if the service requires a field without a column, the message names the column, not every row.
"""

import argparse
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from placement.client import Answer, Candidate, ClientError, Refused, until_accepted
from training.cells import LIST, boolean_of, elements, finite_number, is_empty
from training.table import Row, Table
from training.table_file import AUTOMATIC, STANDARD_INPUT, Reading, open_file, read_table

#: Values of the request in a problem, as the service repeats them: quoted, and truncated if they are long.
_QUOTED = r"""(?:'(?:[^'\\…]|\\[^…])*(?:'|\\?…)|"(?:[^"\\…]|\\[^…])*(?:"|\\?…))"""
_REPEATED_VALUE = rf"got [a-z ]*{_QUOTED}(?:, {_QUOTED})*"


@dataclass(frozen=True, slots=True)
class LocatedCandidate:
    """A candidate and its place in the file: ``row 3 (line 4), column`` or ``row 3, field``.

    Attributes
    ----------
    cells
        Values of the table's columns.
    """

    place: str
    candidate: Candidate
    cells: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class CandidateFile:
    """An open file of candidates.

    Attributes
    ----------
    table
        Columns of the file.
    candidates
        Iterator over the candidates; it reads the file.
    total
        Number of candidates, or None if it is unknown before they are read.
    fields
        V2 datatype of each raw field of the model, or `LIST`.
    """

    table: Table
    candidates: Iterator[LocatedCandidate]
    total: int | None
    fields: dict[str, str]

    @property
    def name(self) -> str:
        """Name of the file in messages."""
        return self.table.source

    @property
    def warning(self) -> str | None:
        """Warning that some fields get their default although columns are passed over, if that is so."""
        foreign = ", ".join(map(repr, self.table.foreign(list(self.fields))))
        absent = ", ".join(repr(name) for name in self.fields if name not in self.table.header)
        if self.table.is_json or not absent or not foreign:
            return None
        return f"{self.name}: WARNING: all rows get the default of {absent}; columns passed over: {foreign}"

    @property
    def passed_over(self) -> str | None:
        """Line that counts what was passed over until now, if anything was."""
        counts = self.table.passed_over(list(self.fields))
        return f"{self.name}: passed over: {counts}" if counts else None


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for a file of candidates."""
    parser.add_argument(
        "file",
        nargs="?",
        default=STANDARD_INPUT,
        metavar="FILE",
        help="CSV, JSON, JSON lines, Parquet, a V1 or V2 request, each also with gzip; - is standard input",
    )
    Reading.add_arguments(parser)


def open_candidates(
    file: str, fields: dict[str, str], stack: ExitStack, reading: Reading = AUTOMATIC
) -> CandidateFile:
    """Open a file of candidates until the stack closes; ``-`` is standard input.

    Raises
    ------
    training.table.DataError
        If the file has no candidates. An invalid row raises only when it is read.
    """
    source, opened = stack.enter_context(open_file(file))
    only_lists = set(fields.values()) == {LIST}
    table = read_table(source, opened, list(fields), reading, only_lists=only_lists)
    table.check_names(list(fields))
    if not set(fields) & set(table.header) and not table.is_json:
        table.require(list(fields))
    parsers: dict[str, Callable[[Any], Any]] = {
        field: partial(_parse, datatype, table) for field, datatype in fields.items() if field in table.header
    }
    if table.is_json:
        # The service's message about a missing field lists the unknown names.
        parsers |= {name: lambda value: value for name in table.foreign(list(fields))}
    rows = (
        LocatedCandidate(f"{row.place}, {table.noun}", _candidate(row), row.cells)
        for row in table.rows(parsers)
    )
    total = _count_rows(Path(file)) if table.total is None else table.total
    return CandidateFile(table, rows, total, fields)


async def ask(
    send: Callable[[list[Candidate]], Awaitable[Answer]], chunk: list[LocatedCandidate], file: CandidateFile
) -> Answer:
    """Send candidates, and return the answer.

    Raises
    ------
    ClientError
        If the service rejects them; the message names their places in the file.
    """
    candidates = [located.candidate for located in chunk]
    try:
        return await until_accepted(lambda: send(candidates))
    except Refused as error:
        raise ClientError(locate_problems(str(error), chunk, file)) from error


def locate_problems(message: str, chunk: list[LocatedCandidate], file: CandidateFile) -> str:
    """Translate the service's message about one request: a line per problem, with its place in the file.

    A message without a candidate stays unchanged.
    """
    lines: list[str] = []
    missing: dict[str, None] = {}
    for row, field, text in _problems(message, file.fields):
        if row is None:
            lines.append(text)
        elif row >= len(chunk):
            return message
        else:
            lines.append(f"{file.name}: {chunk[row].place} {field!r}: {text}")
            if not file.table.is_json and field not in file.table.header:
                # Every row has this problem; report it once, and the others after it is fixed.
                missing[field] = None
    if missing:
        return f"{file.name}: {file.table.missing(*missing)}"
    return "\n".join(lines) or message


def _problems(message: str, fields: Iterable[str]) -> Iterator[tuple[int | None, str, str]]:
    """Yield row, field and text of each problem, and finally the number of further ones with the row None."""
    name = "|".join(re.escape(field) for field in fields)
    by_row = rf"(?:instances|inputs\.candidates)\[(?P<row>\d+)\]\.(?P<field>{name}): "
    by_column = rf"inputs\.(?P<tensor>{name})\[(?P<element>\d+)\]: "
    # A repeated value may look like a problem, so it is matched and skipped together with its quotes.
    token = re.compile(
        rf"{_REPEATED_VALUE}|(?:^|; )(?:{by_row}|{by_column})|; (?P<more>and \d+ more problems?)$"
    )
    found = [match for match in token.finditer(message) if match.lastgroup]
    if not found or found[0].start() > 0:
        return
    ends = [*(match.start() for match in found[1:]), len(message)]
    for match, end in zip(found, ends, strict=True):
        if match["more"]:
            yield None, "", match["more"]
        else:
            row, field = match["row"] or match["element"], match["field"] or match["tensor"]
            yield int(row), field, message[match.end() : end]


def _count_rows(path: Path) -> int | None:
    """Return the number of lines after the first one, which is close enough for a progress bar."""
    if not path.is_file() or path.suffix == ".gz":
        return None
    with path.open("rb") as file:
        return max(sum(1 for _ in file) - 1, 0)


def _candidate(row: Row) -> Candidate:
    return {name: value for name, value in row.values.items() if value is not None}


def _parse(datatype: str, table: Table, cell: object) -> object:
    """Return a cell's value in the type of its field; None for an empty cell."""
    if datatype == "BOOL":
        # The service describes any other value.
        value = boolean_of(cell)
        return value if value is not None or is_empty(cell) else cell
    if datatype == LIST and (isinstance(cell, str) or not table.is_json):
        return None if is_empty(cell) else elements(cell)
    if table.is_json:
        return _parse_json(datatype, cell)
    if is_empty(cell):
        return None
    if datatype == "BYTES":
        return cell.strip() if isinstance(cell, str) else _text_of_number(cell)
    number = finite_number(cell, table.decimal)
    return int(number) if "INT" in datatype and number.is_integer() else number


def _parse_json(datatype: str, value: object) -> object:
    """Return a JSON value; the text of a number as a number where the field is one, and the reverse."""
    if datatype == "BYTES":
        return _text_of_number(value)
    if isinstance(value, str):
        try:
            return finite_number(value)
        except ValueError:
            return value
    return value


def _text_of_number(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
