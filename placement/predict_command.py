"""Ask the served model about candidates of a JSON or CSV file.

A CSV file is read as training reads one: columns in any order, foreign ones passed over, an empty cell a
missing value. The client refuses what is no table or no number; everything else is the service's to judge.
That goes for missing columns too, because the metadata does not say which fields have a default: where the
service misses a field that the file has no column for, the column is named instead of the rows.
"""

import argparse
import asyncio
import codecs
import json
import re
import sys
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from placement.client import Answer, Busy, Candidate, Client, ClientError, Refused, connect
from placement.progress import counting
from training.data import DataError, Table, finite_number, table_text

HELP = "ask the served model"

#: Candidates of one request, and requests in flight: the service is kept busy with little in memory.
CHUNK = 1000
IN_FLIGHT = 4
#: How often a request is sent that the service cannot take now.
TRIES = 10

_DEFAULT_URLS = {"v1": "http://127.0.0.1:8080", "v2": "http://127.0.0.1:8080", "grpc": "127.0.0.1:8081"}
_V1_INSTANCES = "instances"

#: A value of the request as the service repeats it in a problem: quoted, and cut off where it is long.
_ECHO = r"""got [a-z ]*(?:'(?:[^'\\…]|\\[^…])*(?:'|\\?…)|"(?:[^"\\…]|\\[^…])*(?:"|\\?…))"""


class InputError(Exception):
    """A file that holds no candidates; the message says where and what was expected."""


@dataclass(frozen=True, slots=True)
class Located:
    """A candidate and the words for its place: ``row 3 (line 4), column`` or ``candidate 3, field``."""

    place: str
    candidate: Candidate


@dataclass(frozen=True)
class Source:
    """Candidates of a file.

    Attributes
    ----------
    name
        The file's name in messages.
    candidates
        Can be iterated once.
    total
        Their number, or None where it is not known without reading them.
    fields
        V2 datatype of each of the model's raw fields.
    table
        The table that they come from, if it is one.
    """

    name: str
    candidates: Iterator[Located]
    total: int | None
    fields: dict[str, str]
    table: Table | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's options."""
    parser.add_argument(
        "file",
        nargs="?",
        default="-",
        metavar="FILE",
        help="FILE.json (a candidate, a list of them, or a V1 request), FILE.csv with a header, separated "
        "by commas, or - for JSON on standard input",
    )
    parser.add_argument("--url", help="the service (default: the one that `make run` starts)")
    parser.add_argument("--protocol", choices=list(_DEFAULT_URLS), default="v1", help="inference protocol")
    parser.add_argument("--model", default="placement", help="name of the model")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of a table")


def errors() -> tuple[type[Exception], ...]:
    """What this command tells in one line."""
    return (ClientError, DataError, InputError)


def run(options: argparse.Namespace) -> int:
    """Print a prediction for each candidate, in the file's order."""
    asyncio.run(_predict(options))
    return 0


async def _predict(options: argparse.Namespace) -> None:
    client = connect(options.url or _DEFAULT_URLS[options.protocol], options.model, options.protocol)
    try:
        fields = await client.fields()
        with ExitStack() as stack:
            source = read(options.file, fields, stack)
            advance = stack.enter_context(counting("predicting", source.total))
            write = _JsonWriter() if options.json else _TableWriter()
            async with aclosing(_answers(client, source)) as answers:
                async for answer in answers:
                    for prediction in answer.predictions:
                        write.row(prediction, answer.version)
                    advance(len(answer.predictions))
            write.end()
    finally:
        await client.close()


async def _answers(client: Client, source: Source) -> AsyncGenerator[Answer, None]:
    """Answers in the candidates' order, from a few requests in flight."""
    flight: list[asyncio.Task[Answer]] = []
    try:
        while True:
            chunk = list(islice(source.candidates, CHUNK))
            if chunk:
                flight.append(asyncio.create_task(_ask(client, chunk, source)))
            if flight and (not chunk or len(flight) == IN_FLIGHT):
                yield await flight.pop(0)
            if not (chunk or flight):
                return
    finally:
        for task in flight:
            task.cancel()
        await asyncio.gather(*flight, return_exceptions=True)


async def _ask(client: Client, chunk: list[Located], source: Source) -> Answer:
    candidates = [located.candidate for located in chunk]
    try:
        for _ in range(TRIES - 1):
            try:
                return await client.predict(candidates)
            except Busy as busy:
                await asyncio.sleep(busy.after_s)
        return await client.predict(candidates)
    except Refused as error:
        raise ClientError(in_the_file(str(error), chunk, source)) from error


def in_the_file(message: str, chunk: list[Located], source: Source) -> str:
    """The service's message about one request in terms of the file, a line for each problem.

    A message that names no candidate stays as it is.
    """
    lines, missing = [], {}
    for row, field, text in _problems(message, source.fields):
        if row is None:
            lines.append(text)
        elif row >= len(chunk):
            return message
        else:
            lines.append(f"{source.name}: {chunk[row].place} {field!r}: {text}")
            if source.table and field not in source.table.header:
                # All rows have this problem, and none of the others matters before it is mended.
                missing[field] = f"{source.name}: {source.table.missing(field)}"
    return "\n".join(missing.values() or lines) or message


def _problems(message: str, fields: Iterable[str]) -> Iterator[tuple[int | None, str, str]]:
    """Row, field and text of each problem, and at last, without a row, how many more there are."""
    name = "|".join(re.escape(field) for field in fields)
    by_row = rf"(?:instances|inputs\.candidates)\[(?P<row>\d+)\]\.(?P<field>{name}): "
    by_column = rf"inputs\.(?P<tensor>{name})\[(?P<element>\d+)\]: "
    # A value may look like the next problem, and is passed over with its quotes.
    token = re.compile(rf"{_ECHO}|(?:^|; )(?:{by_row}|{by_column})|; (?P<more>and \d+ more problems?)$")
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


def read(file: str, fields: dict[str, str], stack: ExitStack) -> Source:
    """Candidates of a file, which is open as long as the stack.

    Raises
    ------
    InputError, training.data.DataError
        If it holds none; in a table the rows are read, and refused, only as they are asked for.
    """
    if not file.lower().endswith(".csv"):
        name = "standard input" if file == "-" else file
        candidates = _json_candidates(file, name)
        located = (
            Located(f"candidate {number}, field", candidate)
            for number, candidate in enumerate(candidates, start=1)
        )
        return Source(name, located, len(candidates), fields)
    path = Path(file)
    try:
        total = _count_rows(path) if path.is_file() else None
        table = Table(file, stack.enter_context(table_text(path.open("rb"))))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    if not set(fields) & set(table.header):
        table.require(list(fields))
    parsers = {
        field: _text if datatype == "BYTES" else _number
        for field, datatype in fields.items()
        if field in table.header
    }
    rows = (Located(f"{row.place}, column", row.values) for row in table.rows(parsers))
    return Source(file, rows, total, fields, table)


def _count_rows(path: Path) -> int:
    """Number of lines below the first: good enough for a progress bar."""
    with path.open("rb") as file:
        return max(sum(1 for _ in file) - 1, 0)


def _text(cell: str) -> str | None:
    return cell or None


def _number(cell: str) -> float | None:
    return finite_number(cell) if cell else None


def _json_candidates(file: str, name: str) -> list[Candidate]:
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
        raise InputError(f"{name}: must be a candidate, a list of them, or a V1 request")
    for number, candidate in enumerate(content, start=1):
        if not isinstance(candidate, dict):
            raise InputError(f"{name}: candidate {number}: must be an object with the candidate's fields")
    return content


class _TableWriter:
    """A line for each candidate, as they come."""

    def __init__(self) -> None:
        self._count = 0

    def row(self, prediction: dict[str, Any], version: str) -> None:
        if not self._count:
            names = "".join(f"{name:>{max(len(name), 9) + 2}}" for name in prediction)
            print(f"{'#':>8}{names}  version")
        self._count += 1
        values = "".join(f"{_shown(v):>{max(len(name), 9) + 2}}" for name, v in prediction.items())
        print(f"{self._count:>8}{values}  {version}")

    def end(self) -> None:
        """Nothing."""


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


class _JsonWriter:
    """One JSON list, an item for each candidate, as they come."""

    def __init__(self) -> None:
        self._separator = "["

    def row(self, prediction: dict[str, Any], version: str) -> None:
        print(self._separator + json.dumps({**prediction, "model_version": version}), end="")
        self._separator = ",\n"

    def end(self) -> None:
        """Close the list."""
        print("]" if self._separator != "[" else "[]")
