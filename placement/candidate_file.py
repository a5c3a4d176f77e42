"""Candidates of a JSON or CSV file, and the place in the file of each problem that the service reports.

A CSV file is read by the rules of training: columns in any order, unknown columns ignored, an empty cell a
missing value. The client rejects only files that are not tables and cells that are not numbers; the service
validates everything else. That includes missing columns, because the metadata does not tell which fields have
a default: if the service requires a field without a column, the message names the column, not every row.
"""

import argparse
import codecs
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from placement.client import Candidate
from training.data import Table, finite_number, table_text
from transformer.bundle.signature import same_spelling

_V1_INSTANCES = "instances"

#: Values of the request in a problem, as the service repeats them: quoted, and truncated if they are long.
_QUOTED = r"""(?:'(?:[^'\\…]|\\[^…])*(?:'|\\?…)|"(?:[^"\\…]|\\[^…])*(?:"|\\?…))"""
_REPEATED_VALUE = rf"got [a-z ]*{_QUOTED}(?:, {_QUOTED})*"


class InputError(Exception):
    """A file without candidates; the message says where the problem is and what is expected."""


@dataclass(frozen=True, slots=True)
class LocatedCandidate:
    """A candidate and its place in the file: ``row 3 (line 4), column`` or ``row 3, field``.

    Attributes
    ----------
    cells
        Values of the file's columns, see `CandidateFile.header`.
    """

    place: str
    candidate: Candidate
    cells: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class CandidateFile:
    """An open file of candidates.

    Attributes
    ----------
    name
        Name of the file in messages.
    candidates
        Iterator over the candidates; it reads the file.
    total
        Number of candidates, or None if it is unknown before they are read.
    fields
        V2 datatype of each raw field of the model.
    table
        The table, if the file is a CSV file.
    header
        Columns of the table, or the keys of all JSON objects.
    """

    name: str
    candidates: Iterator[LocatedCandidate]
    total: int | None
    fields: dict[str, str]
    table: Table | None = None
    header: tuple[str, ...] = ()

    @property
    def warning(self) -> str | None:
        """Warning that some fields get their default although columns are passed over, if that is so."""
        header = self.table.header if self.table else tuple(self.fields)
        absent = ", ".join(repr(name) for name in self.fields if name not in header)
        passed_over = ", ".join(repr(name) for name in header if name not in self.fields)
        if not absent or not passed_over:
            return None
        return (
            f"{self.name}: WARNING: all rows get the default of {absent}; columns passed over: {passed_over}"
        )


def add_file_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument for a file of candidates."""
    parser.add_argument(
        "file",
        nargs="?",
        default="-",
        metavar="FILE",
        help="FILE.json (an object of fields and values, a list of them, or a V1 request), FILE.csv (with a "
        "header, separated by commas), or - for JSON on standard input",
    )


def open_candidates(file: str, fields: dict[str, str], stack: ExitStack) -> CandidateFile:
    """Open a file of candidates until the stack closes; ``-`` is JSON on standard input.

    Raises
    ------
    InputError, training.data.DataError
        If the file has no candidates. An invalid row of a table raises only when it is read.
    """
    if not file.lower().endswith(".csv"):
        name = "standard input" if file == "-" else file
        candidates = _read_json(file, name)
        _check_spelling(candidates, name, fields)
        header = tuple(dict.fromkeys(key for candidate in candidates for key in candidate))
        located = (
            LocatedCandidate(f"row {number}, field", candidate, [candidate.get(key) for key in header])
            for number, candidate in enumerate(candidates, start=1)
        )
        return CandidateFile(name, located, len(candidates), fields, header=header)
    path = Path(file)
    try:
        total = _count_rows(path) if path.is_file() else None
        table = Table(file, stack.enter_context(table_text(path.open("rb"))))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    table.check_spelling(list(fields))
    if not set(fields) & set(table.header):
        table.require(list(fields))
    parsers = {
        field: _parse_text if datatype == "BYTES" else _parse_number
        for field, datatype in fields.items()
        if field in table.header
    }
    rows = (LocatedCandidate(f"{row.place}, column", row.values, row.cells) for row in table.rows(parsers))
    return CandidateFile(file, rows, total, fields, table, table.header)


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
            if file.table and field not in file.table.header:
                # Every row has this problem; report it once, and the others after it is fixed.
                missing[field] = None
    if file.table and missing:
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


def _count_rows(path: Path) -> int:
    """Return the number of lines after the first one, which is close enough for a progress bar."""
    with path.open("rb") as file:
        return max(sum(1 for _ in file) - 1, 0)


def _check_spelling(candidates: list[Candidate], name: str, fields: dict[str, str]) -> None:
    """Refuse a key that differs from a missing field's name only in spelling; V2's client would drop it."""
    for number, candidate in enumerate(candidates, start=1):
        for key, field in same_spelling(candidate, fields).items():
            if candidate.get(field) is None:
                raise InputError(
                    f"{name}: row {number}, field {field!r}: must be spelled {field!r}, got {key!r}"
                )


def _parse_text(cell: str) -> str | None:
    return cell if cell.strip() else None


def _parse_number(cell: str) -> float | None:
    return finite_number(cell) if cell.strip() else None


def _read_json(file: str, name: str) -> list[Candidate]:
    try:
        text = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        content: Any = orjson.loads(text.removeprefix(codecs.BOM_UTF8))
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise InputError(f"{name}: is not JSON: {error}") from error
    if isinstance(content, dict):
        content = content.get(_V1_INSTANCES, [content])
    if not isinstance(content, list):
        raise InputError(f"{name}: must be an object of fields and values, a list of them, or a V1 request")
    for number, candidate in enumerate(content, start=1):
        if not isinstance(candidate, dict):
            raise InputError(f"{name}: row {number}: must be an object of fields and values")
    return content
