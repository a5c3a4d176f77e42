"""Report of a run: tables for the terminal, and the page docs/benchmarks.md."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from benchmarks import bulk_load, ratios
from benchmarks.results import Cell, Results, Spread, to_json
from benchmarks.systems import BY_NAME

#: Text of a cell without a figure.
NOT_MEASURED = "\N{EN DASH}"
#: Maximum length of a problem in the table; the JSON has all of it.
_MAX_PROBLEM = 200
_EN_DASH = "\N{EN DASH}"
_MULTIPLICATION = "\N{MULTIPLICATION SIGN}"
_PAGE = Path(__file__).with_name("page.md")
#: Numbers of candidates per request that have tables by number of clients; other loads share one table.
_GRID_CANDIDATES = (1, 100)


@dataclass(frozen=True)
class Table:
    """A table with a title; the first column holds text, the others hold figures."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def as_text(self) -> str:
        """Format the table for the terminal."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        aligned = ["  ".join(_cells(line, widths)).rstrip() for line in lines]
        return "\n".join([self.title, *(f"  {line}" for line in aligned)])

    def as_markdown(self) -> str:
        """Format the table as Markdown."""
        rule = ["---", *("--:" for _ in self.header[1:])]
        lines = ["| " + " | ".join(line) + " |" for line in (self.header, rule, *self.rows)]
        return "\n".join([f"## {self.title}", "", *lines])


def _cells(line: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    yield line[0].ljust(widths[0])
    yield from (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))


def tables(results: Results) -> list[Table]:
    """Make the tables of a run, without empty ones."""
    made = [
        _comparisons(results),
        *(_throughput(results, candidates) for candidates in _GRID_CANDIDATES),
        *(_latency(results, candidates) for candidates in _GRID_CANDIDATES),
        _rows(results),
        _encoder(results),
        _in_process(results),
        _processes(results),
        _problems(results),
    ]
    return [table for table in made if table.rows]


def content(results: Results) -> dict[str, Any]:
    """All figures as JSON content."""
    return to_json(results) | ratios.to_json(results)


def text(results: Results) -> str:
    """Format all tables for the terminal."""
    return "\n\n".join(table.as_text() for table in tables(results))


def markdown(results: Results, plot: str, command: str) -> str:
    """Render the page docs/benchmarks.md.

    Parameters
    ----------
    plot
        File name of the plot, in the same directory as the page.
    command
        Command that writes the page.
    """
    settings = results.settings
    machine = "\n".join(f"| {name} | {value} |" for name, value in results.machine.items())
    note = "A quick run measures only the figures that the comparisons need." if settings.get("quick") else ""
    return _PAGE.read_text().format(
        command=command,
        note=note,
        rounds=settings.get("rounds"),
        seconds=settings.get("seconds"),
        plot=plot,
        machine=machine,
        tables="\n\n".join(table.as_markdown() for table in tables(results)),
    )


def _comparisons(results: Results) -> Table:
    rows = []
    for ratio, spread in ratios.measured(results):
        target = f"{'≤' if ratio.lower_is_better else '≥'} {ratio.target:g}{ratio.unit}"
        reached = NOT_MEASURED if spread is None else ("yes" if ratio.is_reached(spread.median) else "no")
        rows.append((ratio.title, target, _figure(spread, _digits(spread), ratio.unit), reached))
    return Table("Comparisons", ("", "target", "measured", "reached"), tuple(rows))


def _throughput(results: Results, candidates: int) -> Table:
    return _grid(
        results,
        candidates,
        f"Requests per second, {_how_many(candidates)} per request",
        lambda cell: _figure(Spread.of(results.per_second(cell)), 0),
    )


def _latency(results: Results, candidates: int) -> Table:
    def figure(cell: Cell) -> str:
        loads = results.loads[cell]
        medians = Spread.of([load.p50_ms for load in loads])
        slowest = Spread.of([load.p99_ms for load in loads])
        return f"{medians.median:.1f} / {slowest.median:.1f}" if medians and slowest else NOT_MEASURED

    title = f"Latency in ms, median / 99th percentile, {_how_many(candidates)} per request"
    return _grid(results, candidates, title, figure)


def _grid(results: Results, candidates: int, title: str, figure: Callable[[Cell], str]) -> Table:
    """Make a table with a row per system and a column per number of clients."""
    cells = [cell for cell in results.loads if cell.candidates == candidates]
    clients = sorted({cell.clients for cell in cells})
    systems = [name for name in BY_NAME if any(cell.system == name for cell in cells)]
    rows = tuple(
        (
            _title(results, system),
            *(
                figure(Cell(system, number, candidates))
                if Cell(system, number, candidates) in results.loads
                else NOT_MEASURED
                for number in clients
            ),
        )
        for system in systems
    )
    return Table(title, ("", *(_count(number, "client") for number in clients)), rows)


def _rows(results: Results) -> Table:
    cells = [cell for cell in results.loads if cell.candidates not in _GRID_CANDIDATES]
    figures = [(*cell, results.rows_per_second(cell)) for cell in cells]
    figures += [
        (system, bulk_load.CONNECTIONS, bulk_load.CANDIDATES, values)
        for system, values in results.bulk.items()
    ]
    rows = tuple(
        (
            _title(results, system),
            f"{clients} {_MULTIPLICATION} {candidates:,}",
            _figure(Spread.of(values), 0),
        )
        for system, clients, candidates, values in figures
    )
    return Table(
        "Candidates per second in large requests",
        ("", f"clients {_MULTIPLICATION} candidates", "candidates/s"),
        rows,
    )


def _encoder(results: Results) -> Table:
    rows = []
    for count, pairs in sorted(results.encoder_s.items()):
        ours = Spread.of([1e6 * own for own, _ in pairs])
        theirs = Spread.of([1e6 * other for _, other in pairs])
        rows.append((f"{count:,}", _figure(ours, _digits(ours)), _figure(theirs, _digits(theirs))))
    title = "Encoder alone, µs, validation included"
    return Table(title, ("rows", "ours", "DictVectorizer"), tuple(rows))


def _in_process(results: Results) -> Table:
    rows = tuple(
        (model, _figure(Spread.of(values), 0)) for model, values in results.in_process.items() if values
    )
    return Table("scikit-learn in process, one thread, 10,000 rows", ("model", "rows/s"), rows)


def _processes(results: Results) -> Table:
    rows = tuple(
        (
            _title(results, system),
            _figure(Spread.of(results.memory_mb.get(system, [])), 0),
            _figure(Spread.of(results.ready_s[system]), 1),
        )
        for system in BY_NAME
        if system in results.ready_s
    )
    title = "Resident memory after the load, and time to the first correct answer"
    return Table(title, ("", "MB", "s"), rows)


def _problems(results: Results) -> Table:
    rows = tuple((name, shorten(problem, _MAX_PROBLEM)) for name, problem in results.problems.items())
    return Table("Not measured", ("", "reason"), rows)


def _title(results: Results, system: str) -> str:
    failed = results.failed(system)
    return BY_NAME[system].title + (f" ({failed} FAILED)" if failed else "")


def _figure(spread: Spread | None, digits: int, unit: str = "") -> str:
    if spread is None:
        return NOT_MEASURED
    least, most = f"{spread.minimum:,.{digits}f}", f"{spread.maximum:,.{digits}f}"
    return f"{spread.median:,.{digits}f}{unit}" + (f" ({least}{_EN_DASH}{most})" if least != most else "")


def _digits(spread: Spread | None) -> int:
    """Number of decimals for three significant digits."""
    if spread is None or spread.median >= 100:
        return 0
    return 1 if spread.median >= 10 else 2


def _how_many(candidates: int) -> str:
    return _count(candidates, "candidate")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
