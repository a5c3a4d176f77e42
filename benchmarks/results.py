"""What a run measured: every figure once a round, so that rounds can be compared with themselves."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, NamedTuple

from benchmarks.load import Load


class Cell(NamedTuple):
    """A system under a load."""

    system: str
    clients: int
    candidates: int


@dataclass(frozen=True)
class Spread:
    """A figure's rounds in short."""

    median: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """That of some rounds; None of none."""
        return cls(median(values), min(values), max(values)) if values else None


@dataclass
class Results:
    """A run's figures.

    Attributes
    ----------
    machine
        Where it ran.
    settings
        How long.
    problems
        Systems that could not be measured, or answered wrongly, and why.
    loads
        What came of each load, a round each.
    bulk
        Candidates per second of a system that many are sent to.
    ready_s, memory_mb
        Of each system's own server, without those that it needs.
    encoder_s
        Seconds of our encoder and of DictVectorizer, for numbers of rows.
    in_process
        Rows that scikit-learn scores in a second in one thread, for each model.
    added_ms
        Our median latency less the predictor's own, at one client.
    """

    machine: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    loads: dict[Cell, list[Load]] = field(default_factory=lambda: defaultdict(list))
    bulk: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    ready_s: dict[str, float] = field(default_factory=dict)
    memory_mb: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    encoder_s: dict[int, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    in_process: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    added_ms: list[float] = field(default_factory=list)

    def per_second(self, cell: Cell) -> list[float]:
        """Requests per second under a load, a round each; none of a system that has a problem."""
        return [] if cell.system in self.problems else [load.per_second for load in self.loads.get(cell, [])]

    def rows_per_second(self, cell: Cell) -> list[float]:
        """Candidates per second under a load, a round each."""
        return [each * cell.candidates for each in self.per_second(cell)]

    def failed(self, system: str) -> int:
        """Requests of a system that failed, in all."""
        return sum(
            load.failed for cell, loads in self.loads.items() if cell.system == system for load in loads
        )


def to_json(results: Results) -> dict[str, Any]:
    """The figures as plain content; `benchmarks.ratios` adds what follows from them."""
    return {
        "machine": results.machine,
        "settings": results.settings,
        "problems": results.problems,
        "systems": {
            name: {
                "ready_s": ready,
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
