"""The comparisons with other systems, and the target of each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.microbenchmarks import ENCODER_ROWS
from benchmarks.models import FOREST
from benchmarks.results import Cell, Results, Spread
from benchmarks.systems import FULL_BATCHES, OURS, OURS_CHOSEN, OURS_DEFAULT, PREDICTOR


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
    if OURS_DEFAULT in results.problems:
        return []
    return _divide_by_round(results.bulk.get(OURS_DEFAULT, []), results.in_process.get(FOREST, []))


def _latency_at_1_client(results: Results) -> list[float]:
    """Divide the tutorial's median latency by ours; of our runtimes, the one with the lowest counts."""
    ours = [values for name in (OURS, OURS_DEFAULT) if (values := results.p50_ms(Cell(name, 1, 1)))]
    best = min(ours, key=median, default=[])
    return _divide_by_round(results.p50_ms(Cell("tutorial", 1, 1)), best)


def _of_documented(
    figures: Callable[[Results], Mapping[str, list[float]]],
) -> Callable[[Results], list[float]]:
    def values(results: Results) -> list[float]:
        if {OURS, "documented"} & set(results.problems):
            return []
        found = figures(results)
        return _divide_by_round(found.get(OURS, []), found.get("documented", []))

    return values


#: Peers with the forest as it was fitted and in its serving form: title, and the target of each.
_PEERS = (
    ("litserve_64", "litserve", "LitServe", 8),
    ("bentoml_64", "bentoml", "BentoML", 15),
    ("ray_64", "ray", "Ray Serve", 15),
    ("fastapi_64", "fastapi", "FastAPI + scikit-learn", 80),
    ("litserve_serving_form_64", "litserve-serving-form", "LitServe, serving form", 1.5),
    ("bentoml_serving_form_64", "bentoml-serving-form", "BentoML, serving form", 1.5),
    ("ray_serving_form_64", "ray-serving-form", "Ray Serve, serving form", 1.5),
    ("fastapi_serving_form_64", "fastapi-serving-form", "FastAPI + scikit-learn, serving form", 1.5),
    ("onnx_64", "onnx", "FastAPI + ONNX Runtime", 1.5),
)

RATIOS: tuple[Ratio, ...] = (
    *(
        Ratio(
            f"tutorial_{clients}",
            f"requests/s, {clients} clients: ours / tutorial's app",
            target,
            _throughput(OURS, "tutorial", clients),
        )
        for clients, target in ((16, 60), (64, 120), (256, 150))
    ),
    Ratio(
        "tutorial_latency_1",
        "median latency, 1 client: tutorial's app / ours with the faster runtime",
        8,
        _latency_at_1_client,
    ),
    Ratio(
        "documented_64",
        "requests/s, 64 clients: ours / KServe's documented transformer",
        120,
        _throughput(OURS, "documented", 64),
    ),
    *(
        Ratio(name, f"requests/s, 64 clients: ours / {title}", target, _throughput(OURS, system, 64))
        for name, system, title, target in _PEERS
    ),
    Ratio(
        "chosen_64",
        "requests/s, 64 clients: ours with our chosen model / tutorial's app",
        75,
        _throughput(OURS_CHOSEN, "tutorial", 64),
    ),
    Ratio(
        "bound_64",
        "rows/s, 64 clients: ours / predictor alone, batches of 64 on one connection",
        0.5,
        _of_predictor_maximum,
    ),
    Ratio(
        "front_end_echo_64",
        "requests/s, stub predictor, 64 clients: ours / raw ASGI echo",
        0.8,
        _throughput("front-end", "echo", 64),
    ),
    Ratio(
        "front_end_noop_64",
        "requests/s, stub predictor, 64 clients: ours / kserve.Model that does nothing",
        11,
        _throughput("front-end", "noop", 64),
    ),
    Ratio(
        "added_latency_ms",
        "median latency, 1 client: ours less the predictor's own",
        0.3,
        lambda results: results.added_ms,
        unit=" ms",
        lower_is_better=True,
    ),
    *(
        Ratio(f"encoder_{rows}", f"encoder, {rows:,} rows: DictVectorizer's time / ours", 10, _encoder(rows))
        for rows in ENCODER_ROWS
    ),
    Ratio(
        "bulk",
        "bulk rows/s: ours with the manifest's predictor / scikit-learn in process, one thread",
        1,
        _bulk,
    ),
    Ratio(
        "memory",
        "resident memory: ours / KServe's documented transformer",
        0.65,
        _of_documented(lambda results: results.memory_mb),
        lower_is_better=True,
    ),
    Ratio(
        "ready",
        "seconds to ready: ours / KServe's documented transformer",
        0.8,
        _of_documented(lambda results: results.ready_s),
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
