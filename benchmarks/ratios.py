"""The comparisons with other systems, and the target of each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.launchers import OURS_2_WORKERS
from benchmarks.microbenchmarks import ENCODER_ROWS
from benchmarks.models import FOREST
from benchmarks.results import Cell, Results, Spread
from benchmarks.systems import FULL_BATCHES, OURS, OURS_CHOSEN, PREDICTOR


@dataclass(frozen=True)
class Ratio:
    """A comparison.

    Attributes
    ----------
    target
        The value to reach; its key in the JSON is ``mark``.
    values
        Computes the value of each round.
    unit
        Unit of the values, with a leading space if it needs one.
    lower_is_better
        True for a ratio that must stay below its target.
    """

    name: str
    title: str
    target: float
    values: Callable[[Results], list[float]]
    unit: str = "x"
    lower_is_better: bool = False

    def is_reached(self, value: float) -> bool:
        """Return True if a value reaches the target."""
        return value <= self.target if self.lower_is_better else value >= self.target


def _divide_by_round(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Divide the values of each round, because the machine's speed changes between rounds."""
    return [own / other for own, other in zip(ours, theirs, strict=False) if other]


def _throughput(ours: str, theirs: str, clients: int) -> Callable[[Results], list[float]]:
    return lambda results: _divide_by_round(
        results.per_second(Cell(ours, clients, 1)), results.per_second(Cell(theirs, clients, 1))
    )


def _of_predictor_maximum(results: Results) -> list[float]:
    return _divide_by_round(
        results.rows_per_second(Cell(OURS, 64, 1)), results.rows_per_second(Cell(PREDICTOR, *FULL_BATCHES))
    )


def _encoder(rows: int) -> Callable[[Results], list[float]]:
    return lambda results: [theirs / ours for ours, theirs in results.encoder_s.get(rows, [])]


def _bulk(results: Results) -> list[float]:
    if OURS_2_WORKERS in results.problems:
        return []
    return _divide_by_round(results.bulk.get(OURS_2_WORKERS, []), results.in_process.get(FOREST, []))


def _memory(results: Results) -> list[float]:
    if {OURS, "documented"} & set(results.problems):
        return []
    return _divide_by_round(results.memory_mb.get(OURS, []), results.memory_mb.get("documented", []))


RATIOS: tuple[Ratio, ...] = (
    Ratio(
        "tutorial_64", "throughput, 64 clients: ours / tutorial's app", 30, _throughput(OURS, "tutorial", 64)
    ),
    Ratio(
        "tutorial_256",
        "throughput, 256 clients: ours / tutorial's app",
        60,
        _throughput(OURS, "tutorial", 256),
    ),
    Ratio(
        "documented_64",
        "throughput, 64 clients: ours / KServe's documented transformer",
        30,
        _throughput(OURS, "documented", 64),
    ),
    Ratio("litserve_64", "throughput, 64 clients: ours / LitServe", 2, _throughput(OURS, "litserve", 64)),
    Ratio("bentoml_64", "throughput, 64 clients: ours / BentoML", 6, _throughput(OURS, "bentoml", 64)),
    Ratio(
        "chosen_64",
        "throughput, 64 clients: ours with our chosen model / tutorial's app",
        75,
        _throughput(OURS_CHOSEN, "tutorial", 64),
    ),
    Ratio(
        "bound_64",
        "rows/s, 64 clients: ours / predictor alone, fed batches of 64 on one connection",
        0.7,
        _of_predictor_maximum,
    ),
    Ratio(
        "added_latency_ms",
        "median latency, 1 client: ours less the predictor's own",
        0.7,
        lambda results: results.added_ms,
        unit=" ms",
        lower_is_better=True,
    ),
    *(
        Ratio(f"encoder_{rows}", f"encoder, {rows:,} rows: DictVectorizer's time / ours", 10, _encoder(rows))
        for rows in ENCODER_ROWS
    ),
    Ratio(
        "front_end",
        "requests/s, stub predictor, 64 clients: ours / kserve.Model that does nothing",
        3,
        _throughput("front-end", "noop", 64),
    ),
    Ratio(
        "bulk",
        "bulk rows/s: ours with 2 predictor workers / scikit-learn in process, one thread",
        1,
        _bulk,
    ),
    Ratio(
        "memory",
        "resident memory: ours / KServe's documented transformer",
        0.8,
        _memory,
        lower_is_better=True,
    ),
)


def measured(results: Results) -> Iterator[tuple[Ratio, Spread | None]]:
    """Yield each comparison with its figures, or None if it was not measured."""
    for ratio in RATIOS:
        yield ratio, Spread.of(ratio.values(results))


def to_json(results: Results) -> dict[str, Any]:
    """The median of each comparison, and its details, as JSON content."""
    found = {ratio.name: (ratio, spread) for ratio, spread in measured(results)}
    return {
        "ratios": {name: spread.median if spread else None for name, (_, spread) in found.items()},
        "ratio_details": {
            name: {
                "what": ratio.title,
                "mark": ratio.target,
                "better": "less" if ratio.lower_is_better else "more",
                "minimum": spread.minimum if spread else None,
                "maximum": spread.maximum if spread else None,
                "reached": ratio.is_reached(spread.median) if spread else None,
            }
            for name, (ratio, spread) in found.items()
        },
    }
