"""Send the rows of a file to the served model, and print or write its predictions."""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from inferenceservice.gateway import Gateway, GatewayError
from placement.candidate_file import (
    CandidateFile,
    LocatedCandidate,
    add_file_arguments,
    ask,
    open_candidates,
)
from placement.client import DEFAULT_REST_URL, Answer, Client, ClientError, connect
from placement.command import Command
from placement.predictions_file import OutputError, PredictionsFile
from placement.progress import progress_bar
from training.table import EMPTY, DataError
from training.table_file import Reading

#: Candidates per request, and requests in flight: enough to keep the service busy, with little memory here.
CHUNK_SIZE = 1000
IN_FLIGHT = 4

_DEFAULT_URLS = {"v1": DEFAULT_REST_URL, "v2": DEFAULT_REST_URL, "grpc": "127.0.0.1:8081"}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_file_arguments(parser)
    parser.add_argument("--url", help="address of the service (default: that of `make run`)")
    parser.add_argument("--protocol", choices=list(_DEFAULT_URLS), default="v1", help="inference protocol")
    parser.add_argument("--model", help="name of the model (default: the only one of the service)")
    Gateway.add_arguments(parser)
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    output.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE.csv",
        help="write the columns of the input with prediction, probabilities and version, and print nothing",
    )


def _errors() -> tuple[type[Exception], ...]:
    return (ClientError, DataError, GatewayError, OutputError)


def _run(options: argparse.Namespace) -> int:
    asyncio.run(_predict(options))
    return 0


async def _predict(options: argparse.Namespace) -> None:
    """Print a prediction for each candidate, in the order of the file."""
    url = options.url or _DEFAULT_URLS[options.protocol]
    client = connect(url, options.model, options.protocol, Gateway.of(options))
    try:
        fields = await client.fields()
        with ExitStack() as stack:
            file = open_candidates(options.file, fields, stack, Reading.of(options))
            advance = stack.enter_context(progress_bar("predicting", file.total))
            writer = _writer(options, file, stack)
            if file.warning:
                print(file.warning, file=sys.stderr)
            count = 0
            async with aclosing(_answers(client, file)) as answers:
                async for chunk, answer in answers:
                    for located, prediction in zip(chunk, answer.predictions, strict=True):
                        writer.write(located.cells, prediction, answer.version)
                    count += len(chunk)
                    advance(len(chunk))
            if not count:
                raise DataError(file.name, [EMPTY])
            writer.end()
            if file.passed_over:
                print(file.passed_over, file=sys.stderr)
    finally:
        await client.close()


def _writer(options: argparse.Namespace, file: CandidateFile, stack: ExitStack) -> "_Writer":
    if options.output is not None:
        return stack.enter_context(PredictionsFile(options.output, file.table.header))
    return _JsonWriter() if options.json else _TableWriter()


async def _answers(
    client: Client, file: CandidateFile
) -> AsyncGenerator[tuple[list[LocatedCandidate], Answer], None]:
    """Send the candidates in chunks, several requests at a time; yield each with its answer, in order."""
    in_flight: list[tuple[list[LocatedCandidate], asyncio.Task[Answer]]] = []
    try:
        while True:
            chunk = list(islice(file.candidates, CHUNK_SIZE))
            if chunk:
                in_flight.append((chunk, asyncio.create_task(ask(client.predict, chunk, file))))
            if in_flight and (not chunk or len(in_flight) == IN_FLIGHT):
                sent, task = in_flight.pop(0)
                yield sent, await task
            if not (chunk or in_flight):
                return
    finally:
        tasks = [task for _, task in in_flight]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Writer(Protocol):
    """Writes a prediction for each row of the input."""

    def write(self, cells: Sequence[Any], prediction: dict[str, Any], version: str) -> None:
        """Write the prediction for a row with these cells."""

    def end(self) -> None:
        """Complete the output."""


class _TableWriter:
    """Prints a table, a row per candidate."""

    def __init__(self) -> None:
        self._count = 0

    def write(self, _: Sequence[Any], prediction: dict[str, Any], version: str) -> None:
        prediction = _columns(prediction)
        if not self._count:
            names = "".join(f"{name:>{max(len(name), 9) + 2}}" for name in prediction)
            print(f"{'#':>8}{names}  version")
        self._count += 1
        values = "".join(f"{_format(v):>{max(len(name), 9) + 2}}" for name, v in prediction.items())
        print(f"{self._count:>8}{values}  {version}")

    def end(self) -> None:
        """Do nothing: a table needs no end."""


def _columns(prediction: dict[str, Any]) -> dict[str, Any]:
    """Return a prediction with a column for each of many classes."""
    flat: dict[str, Any] = {}
    for name, value in prediction.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def _format(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


class _JsonWriter:
    """Prints a JSON list, an item per candidate."""

    def __init__(self) -> None:
        self._separator = "["

    def write(self, _: Sequence[Any], prediction: dict[str, Any], version: str) -> None:
        print(self._separator + json.dumps({**prediction, "model_version": version}), end="")
        self._separator = ",\n"

    def end(self) -> None:
        """Print the end of the list."""
        print("]" if self._separator != "[" else "[]")


COMMAND = Command(
    name="predict",
    help="send candidates to the served model",
    description=__doc__,
    add_arguments=_add_arguments,
    run=_run,
    errors=_errors,
)
