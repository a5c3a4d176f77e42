"""The comparisons that the project is held to, each with its mark."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.kinds import OURS_2_WORKERS
from benchmarks.microbenchmarks import ENCODER_ROWS
from benchmarks.models import FOREST
from benchmarks.results import Cell, Results, Spread
from benchmarks.systems import BOUND, OURS, OURS_CHOSEN, PREDICTOR


@dataclass(frozen=True)
class Ratio:
    """A comparison.

    Attributes
    ----------
    mark
        What is to be reached.
    of
        Its values, a round each.
    unit
        What the values are counted in.
    less
        Whether less is better.
    """

    name: str
    what: str
    mark: float
    of: Callable[[Results], list[float]]
    unit: str = "x"
    less: bool = False

    def reached(self, value: float) -> bool:
        """Whether a value is as good as the mark."""
        return value <= self.mark if self.less else value >= self.mark


def _divided(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Round by round, because the machine's speed drifts."""
    return [own / other for own, other in zip(ours, theirs, strict=False) if other]


def _throughput(ours: str, theirs: str, clients: int) -> Callable[[Results], list[float]]:
    return lambda results: _divided(
        results.per_second(Cell(ours, clients, 1)), results.per_second(Cell(theirs, clients, 1))
    )


def _bound(results: Results) -> list[float]:
    return _divided(
        results.rows_per_second(Cell(OURS, 64, 1)), results.rows_per_second(Cell(PREDICTOR, *BOUND))
    )


def _encoder(rows: int) -> Callable[[Results], list[float]]:
    return lambda results: [theirs / ours for ours, theirs in results.encoder_s.get(rows, [])]


def _bulk(results: Results) -> list[float]:
    if OURS_2_WORKERS in results.problems:
        return []
    return _divided(results.bulk.get(OURS_2_WORKERS, []), results.in_process.get(FOREST, []))


def _memory(results: Results) -> list[float]:
    if {OURS, "documented"} & set(results.problems):
        return []
    return _divided(results.memory_mb.get(OURS, []), results.memory_mb.get("documented", []))


RATIOS: Final[tuple[Ratio, ...]] = (
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
        _bound,
    ),
    Ratio(
        "added_latency_ms",
        "median latency, 1 client: ours less the predictor's own",
        0.7,
        lambda results: results.added_ms,
        unit=" ms",
        less=True,
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
    Ratio("memory", "resident memory: ours / KServe's documented transformer", 0.8, _memory, less=True),
)


def measured(results: Results) -> Iterator[tuple[Ratio, Spread | None]]:
    """Each comparison, and what came of it; None where it was not measured."""
    for ratio in RATIOS:
        yield ratio, Spread.of(ratio.of(results))


def to_json(results: Results) -> dict[str, Any]:
    """One number for each comparison, the median of the rounds; and what stands behind it."""
    found = {ratio.name: (ratio, spread) for ratio, spread in measured(results)}
    return {
        "ratios": {name: spread.median if spread else None for name, (_, spread) in found.items()},
        "ratio_details": {
            name: {
                "what": ratio.what,
                "mark": ratio.mark,
                "better": "less" if ratio.less else "more",
                "minimum": spread.minimum if spread else None,
                "maximum": spread.maximum if spread else None,
                "reached": ratio.reached(spread.median) if spread else None,
            }
            for name, (ratio, spread) in found.items()
        },
    }
