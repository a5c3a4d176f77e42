"""Figures of a run: one value per round, so that systems are compared within a round."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, NamedTuple

from benchmarks.load import Load


class Cell(NamedTuple):
    """A system under one load: a number of clients, and candidates per request."""

    system: str
    clients: int
    candidates: int


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum of a figure over the rounds."""

    median: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """Summarize the values of the rounds; None if there are none."""
        return cls(median(values), min(values), max(values)) if values else None


@dataclass
class Results:
    """A run's figures.

    Attributes
    ----------
    machine
        Description of the machine and of the package versions.
    settings
        Settings of the run.
    problems
        The reason for each system that could not be measured or gave wrong answers.
    loads
        Figures of each load, one per round.
    bulk
        Candidates per second in large requests, by system.
    ready_s, memory_mb
        Start times and memory of each system's own server, without the servers that it needs.
    encoder_s
        Seconds of our encoder and of DictVectorizer, by number of rows.
    in_process
        Rows per second of scikit-learn in this process in one thread, by model.
    added_ms
        Our median latency less the predictor's own, with one client.
    """

    machine: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    loads: dict[Cell, list[Load]] = field(default_factory=lambda: defaultdict(list))
    bulk: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    ready_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory_mb: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    encoder_s: dict[int, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    in_process: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    added_ms: list[float] = field(default_factory=list)

    def per_second(self, cell: Cell) -> list[float]:
        """Requests per second under a load, one value per round; empty for a system with a problem."""
        return [] if cell.system in self.problems else [load.per_second for load in self.loads.get(cell, [])]

    def p50_ms(self, cell: Cell) -> list[float]:
        """Median latency under a load, one value per round; empty for a system with a problem."""
        return [] if cell.system in self.problems else [load.p50_ms for load in self.loads.get(cell, [])]

    def rows_per_second(self, cell: Cell) -> list[float]:
        """Candidates per second under a load, one value per round."""
        return [each * cell.candidates for each in self.per_second(cell)]

    def failed(self, system: str) -> int:
        """Total number of failed requests of a system."""
        return sum(
            load.failed for cell, loads in self.loads.items() if cell.system == system for load in loads
        )


def to_json(results: Results) -> dict[str, Any]:
    """The figures as JSON content; `benchmarks.ratios` adds the comparisons."""
    return {
        "machine": results.machine,
        "settings": results.settings,
        "problems": results.problems,
        "systems": {
            name: {
                "ready_s": _spread(ready),
                "memory_mb": _spread(results.memory_mb.get(name, [])),
                "failed": results.failed(name),
                "bulk_rows_per_second": _spread(results.bulk.get(name, [])),
            }
            for name, ready in results.ready_s.items()
        },
        "loads": [_load(results, cell, loads) for cell, loads in results.loads.items()],
        "encoder": [
            {
                "rows": rows,
                "ours_s": _spread([ours for ours, _ in pairs]),
                "dict_vectorizer_s": _spread([theirs for _, theirs in pairs]),
            }
            for rows, pairs in results.encoder_s.items()
        ],
        "in_process_rows_per_second": {
            model: _spread(values) for model, values in results.in_process.items()
        },
        "added_latency_ms": _spread(results.added_ms),
    }


def _load(results: Results, cell: Cell, loads: Sequence[Load]) -> dict[str, Any]:
    return {
        **cell._asdict(),
        "requests_per_second": _spread(results.per_second(cell)),
        "rows_per_second": _spread(results.rows_per_second(cell)),
        "p50_ms": _spread([load.p50_ms for load in loads]),
        "p90_ms": _spread([load.p90_ms for load in loads]),
        "p99_ms": _spread([load.p99_ms for load in loads]),
        "failed": sum(load.failed for load in loads),
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    spread = Spread.of(values)
    return asdict(spread) if spread else None
