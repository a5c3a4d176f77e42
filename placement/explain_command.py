"""Explain the predictions for the candidates of a file: what each field contributes to the answer."""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from inferenceservice.gateway import Gateway, GatewayError
from placement.candidate_file import add_file_arguments, ask, open_candidates
from placement.client import DEFAULT_REST_URL, ClientError, connect_rest
from placement.command import Command
from placement.explained import Explained
from placement.predictions_file import OutputError
from placement.progress import progress_bar
from training.table import DataError
from training.table_file import Reading

#: Characters of the longest bar.
BAR_WIDTH = 24


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_file_arguments(parser)
    parser.add_argument("--url", default=DEFAULT_REST_URL, help="REST address of the service")
    parser.add_argument("--model", help="name of the model (default: the only one of the service)")
    Gateway.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of bars")
    parser.add_argument("--html", metavar="PAGE", help="write a page with a chart for each candidate, too")


def _errors() -> tuple[type[Exception], ...]:
    return (ClientError, DataError, GatewayError, OutputError)


def _run(options: argparse.Namespace) -> int:
    explained = asyncio.run(_explain(options))
    if options.json:
        print(json.dumps([{**one.explanation, "model_version": one.version} for one in explained], indent=1))
    else:
        print("\n\n".join("\n".join(_lines(one)) for one in explained))
    if options.html is not None:
        from placement.explanation_page import render

        try:
            Path(options.html).write_text(render(explained))
        except OSError as error:
            raise OutputError(f"--html {options.html}: {error.strerror}") from error
        print(f"wrote {options.html}", file=sys.stderr)
    return 0


async def _explain(options: argparse.Namespace) -> list[Explained]:
    """Ask for one candidate at a time: the service explains one after another anyway."""
    client = connect_rest(options.url, options.model, gateway=Gateway.of(options))
    explained = []
    try:
        fields = await client.fields()
        with ExitStack() as stack:
            file = open_candidates(options.file, fields, stack, Reading.of(options))
            advance = stack.enter_context(progress_bar("explaining", file.total))
            for number, located in enumerate(file.candidates, start=1):
                answer = await ask(client.explain, [located], file)
                explanation = answer.predictions[0]
                explained.append(Explained(number, located.candidate, explanation, answer.version))
                advance(1)
            if file.passed_over:
                print(file.passed_over, file=sys.stderr)
    finally:
        await client.close()
    return explained


def _lines(one: Explained) -> Iterator[str]:
    """Yield the lines of one candidate: the contributions as bars, and what adds up to the probability."""
    ranked = one.contributions
    score_name = one.score_name
    width = max(len(score_name), *(len(label) for label, _ in ranked))
    unit = max(abs(value) for _, value in ranked) / BAR_WIDTH or 1.0
    yield (
        f"row {one.number}: {one.output} {one.answer}, {score_name} {_score(one.score).strip()} "
        f"({one.version})"
    )
    yield f"  {'baseline':<{width}}  {_score(one.explanation['baseline'])}"
    for label, value in ranked:
        bar = "█" * round(abs(value) / unit)
        sides = (bar.rjust(BAR_WIDTH), "") if value < 0 else (" " * BAR_WIDTH, bar)
        yield f"  {label:<{width}}  {_score(value, '+')}  {sides[0]}│{sides[1]}"
    yield f"  {score_name:<{width}}  {_score(one.score)}"
    if not one.explanation["exact"]:
        largest = max(one.explanation["standard_errors"].values())
        yield f"  estimated from permutations; standard errors up to {largest:.4f}"
    if one.changes:
        yield "  would turn it: " + "; or ".join(one.changes)
    elif one.is_negative:
        yield "  no change of one or two fields was found that turns it"


def _score(value: float, sign: str = "") -> str:
    """Return a probability with three decimals, a larger number with five digits."""
    return f"{value:{sign}6.3f}" if abs(value) < 100 else f"{value:{sign}.5g}"


COMMAND = Command(
    name="explain",
    help="explain the predictions for candidates",
    description=__doc__,
    add_arguments=_add_arguments,
    run=_run,
    errors=_errors,
)
