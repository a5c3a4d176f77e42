"""Ask the served model about candidates of a JSON or CSV file."""

import argparse
import asyncio
import csv
import json
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, Any

from placement.client import Answer, Candidate, Client, ClientError, connect
from placement.progress import counting

HELP = "ask the served model"

#: Candidates of one request, and requests in flight: the service is kept busy with little in memory.
CHUNK = 500
IN_FLIGHT = 4

_DEFAULT_URLS = {"v1": "http://127.0.0.1:8080", "v2": "http://127.0.0.1:8080", "grpc": "127.0.0.1:8081"}


class InputError(Exception):
    """A file that holds no candidates; the message says where and what was expected."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's options."""
    parser.add_argument(
        "file",
        nargs="?",
        default="-",
        metavar="FILE",
        help="FILE.json (a candidate, a list of them, or a V1 request), FILE.csv with a header, "
        "or - for JSON on standard input",
    )
    parser.add_argument("--url", help="the service (default: the one that `make run` starts)")
    parser.add_argument("--protocol", choices=list(_DEFAULT_URLS), default="v1", help="inference protocol")
    parser.add_argument("--model", default="placement", help="name of the model")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of a table")


def errors() -> tuple[type[Exception], ...]:
    """What this command tells in one line."""
    return (ClientError, InputError)


def run(options: argparse.Namespace) -> int:
    """Print a prediction for each candidate, in the file's order."""
    asyncio.run(_predict(options))
    return 0


async def _predict(options: argparse.Namespace) -> None:
    client = connect(options.url or _DEFAULT_URLS[options.protocol], options.model, options.protocol)
    try:
        datatypes = await client.fields()
        with ExitStack() as stack:
            rows, total = _read(options.file, datatypes, stack)
            advance = stack.enter_context(counting("predicting", total))
            write = _JsonWriter() if options.json else _TableWriter()
            async for answer in _answers(client, rows):
                for prediction in answer.predictions:
                    write.row(prediction, answer.version)
                advance(len(answer.predictions))
            write.end()
    finally:
        await client.close()


async def _answers(client: Client, rows: Iterator[Candidate]) -> AsyncIterator[Answer]:
    """Answers in the rows' order, from a few requests in flight."""
    flight: list[asyncio.Task[Answer]] = []
    first = 0
    try:
        while True:
            chunk = list(islice(rows, CHUNK))
            if chunk:
                flight.append(asyncio.create_task(_ask(client, chunk, first)))
                first += len(chunk)
            if flight and (not chunk or len(flight) == IN_FLIGHT):
                yield await flight.pop(0)
            if not (chunk or flight):
                return
    finally:
        for task in flight:
            task.cancel()


async def _ask(client: Client, chunk: list[Candidate], first: int) -> Answer:
    try:
        return await client.predict(chunk)
    except ClientError as error:
        raise ClientError(_in_the_file(str(error), first)) from error


def _in_the_file(message: str, first: int) -> str:
    """The service's message with positions counted through the whole file instead of one request."""
    numbered = re.compile(r"\b(instances|inputs\.[\w&]+)\[(\d+)\]")
    return numbered.sub(lambda found: f"{found[1]}[{int(found[2]) + first}]", message)


def _read(file: str, datatypes: dict[str, str], stack: ExitStack) -> tuple[Iterator[Candidate], int | None]:
    """Candidates of a file, and how many they are where that is known without reading it."""
    if file.lower().endswith(".csv"):
        path = Path(file)
        try:
            total = max(sum(1 for _ in path.open("rb")) - 1, 0)
            return _csv_rows(stack.enter_context(path.open(newline="")), file, datatypes), total
        except OSError as error:
            raise InputError(f"{file}: {error.strerror}") from error
    candidates = _json_candidates(file)
    return iter(candidates), len(candidates)


def _csv_rows(lines: IO[str], file: str, datatypes: dict[str, str]) -> Iterator[Candidate]:
    reader = csv.DictReader(lines)
    missing = [name for name in datatypes if name not in (reader.fieldnames or ())]
    if missing:
        raise InputError(f"{file}: the header must name the fields, {', '.join(missing)} are not there")
    for row in reader:
        yield {name: _value(row[name], datatype) for name, datatype in datatypes.items()}


def _value(text: str | None, datatype: str) -> str | float | None:
    if not text:
        return None
    if datatype == "BYTES":
        return text
    try:
        return float(text)
    except ValueError:
        return text


def _json_candidates(file: str) -> list[Candidate]:
    try:
        content: Any = json.load(sys.stdin) if file == "-" else json.loads(Path(file).read_text())
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file}: is not JSON: {error}") from error
    if isinstance(content, dict):
        content = content.get("instances", [content])
    if not isinstance(content, list) or not all(isinstance(candidate, dict) for candidate in content):
        raise InputError(f"{file}: must be a candidate, a list of them, or a V1 request")
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
        values = "".join(f"{_text(v):>{max(len(name), 9) + 2}}" for name, v in prediction.items())
        print(f"{self._count:>8}{values}  {version}")

    def end(self) -> None:
        """Nothing."""


def _text(value: object) -> str:
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
