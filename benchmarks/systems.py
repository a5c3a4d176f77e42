"""The systems to compare: the requests that each gets, and the loads that it is measured with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.answer_check import Request
from benchmarks.launchers import (
    MLSERVER,
    MLSERVER_2_WORKERS,
    OURS_2_WORKERS,
    SKLEARNSERVER,
    WORKERS,
    our_name,
)
from benchmarks.models import CHOSEN, FOREST, ORIGINAL_FOREST, ServedModel
from benchmarks.stub_predictor import PROBABILITY
from predictor.runtimes import get_runtime
from training.candidates import Candidate


@dataclass(frozen=True)
class System:
    """A system to measure; a row in each table of the results.

    Attributes
    ----------
    title
        Name in the tables.
    server
        Name of the server that gets the requests.
    request
        Makes the form of the requests for a model.
    quick
        Loads of a quick run, each as clients and candidates per request.
    extra
        Loads of a full run besides those of all systems.
    slow
        True if the system is known to be too slow for wrk.
    bulk
        True if its throughput with large requests is measured.
    constant
        True if it answers every candidate with the stub's probability.
    """

    name: str
    title: str
    server: str
    request: Callable[[ServedModel], Request]
    quick: tuple[tuple[int, int], ...] = ()
    extra: tuple[tuple[int, int], ...] = ()
    slow: bool = False
    bulk: bool = False
    constant: bool = False


# The forms of the requests.


def _candidates(candidates: Sequence[Candidate]) -> object:
    return {"candidates": candidates}


def _instances(candidates: Sequence[Candidate]) -> object:
    return {"instances": candidates}


def _predictions(content: Any) -> list[float]:  # noqa: ANN401 (JSON)
    return [one["placement_probability"] for one in content["predictions"]]


def _tutorial(_: ServedModel) -> Request:
    return Request(
        "/predict",
        lambda candidates: candidates if len(candidates) > 1 else candidates[0],
        lambda content: [
            one["placement_probability"] for one in (content if isinstance(content, list) else [content])
        ],
    )


def _litserve(_: ServedModel) -> Request:
    return Request("/predict", _candidates, _predictions)


def _bentoml(_: ServedModel) -> Request:
    return Request("/predict", _candidates, lambda content: [one["placement_probability"] for one in content])


def _v1(_: ServedModel) -> Request:
    return Request("/v1/models/placement:predict", _instances, _predictions)


def _echo(_: ServedModel) -> Request:
    return Request("/", _instances, lambda content: [PROBABILITY for _ in content["instances"]])


def _encoded_v1(model: ServedModel) -> Request:
    return Request(
        "/v1/models/placement:predict",
        lambda candidates: {"instances": model.encode(candidates).tolist()},
        lambda content: model.positive_probabilities(content["predictions"]),
    )


def _encoded_v2(output: str) -> Callable[[ServedModel], Request]:
    def request(model: ServedModel) -> Request:
        def body(candidates: Sequence[Candidate]) -> object:
            matrix = model.encode(candidates)
            tensor = {"name": "features", "datatype": "FP64", "shape": matrix.shape}
            return {
                "inputs": [{**tensor, "data": matrix.ravel().tolist()}],
                "outputs": [{"name": output}],
            }

        def read(content: Any) -> list[float]:  # noqa: ANN401 (JSON)
            (tensor,) = (one for one in content["outputs"] if one["name"] == output)
            width = tensor["shape"][1]
            data = tensor["data"]
            return model.positive_probabilities(
                [data[start : start + width] for start in range(0, len(data), width)]
            )

        return Request("/v2/models/placement/infer", body, read)

    return request


#: Our service in the comparisons; the documented transformer has the same predictor.
OURS = our_name(SKLEARNSERVER, "v1", FOREST)
OURS_CHOSEN = our_name(SKLEARNSERVER, "v1", CHOSEN)
#: The predictors of these two, without a transformer.
PREDICTOR = "predictor-sklearnserver-v1"
PREDICTOR_CHOSEN = "predictor-chosen-sklearnserver-v1"
#: Load for the highest throughput of a predictor: one connection with batches of 64 (clients and candidates).
FULL_BATCHES = (1, 64)
#: Addition to a system's title for each model.
_MODEL_TITLES = {FOREST: "", ORIGINAL_FOREST: ", original forest", CHOSEN: ", chosen model"}


def _our_system(runtime: str, protocol: str, model: str) -> System:
    name = our_name(runtime, protocol, model)
    quick: dict[str, tuple[tuple[int, int], ...]] = {
        OURS: ((64, 1), (256, 1)),
        OURS_CHOSEN: ((64, 1),),
    }
    title = f"ours{_MODEL_TITLES[model]} → {runtime}, {protocol}"
    return System(name, title, name, _v1, quick=quick.get(name, ()), bulk=True)


def _predictor_system(runtime: str, protocol: str, model: str) -> System:
    name = our_name(runtime, protocol, model).replace("ours", "predictor")
    request = _encoded_v1 if protocol == "v1" else _encoded_v2(get_runtime(runtime).probability_output)
    quick: tuple[tuple[int, int], ...] = (FULL_BATCHES,) if name == PREDICTOR else ()
    return System(
        name,
        f"predictor alone{_MODEL_TITLES[model]}: {runtime}, {protocol}",
        f"{runtime}/{model}",
        request,
        quick=quick,
        extra=(FULL_BATCHES,),
        slow=model == ORIGINAL_FOREST,
    )


SYSTEMS: tuple[System, ...] = (
    System(
        "tutorial",
        "tutorial's app: Flask, gunicorn",
        "tutorial",
        _tutorial,
        quick=((64, 1), (256, 1)),
        slow=True,
    ),
    System(
        "tutorial-workers", f"tutorial's app, {WORKERS} workers", "tutorial-workers", _tutorial, slow=True
    ),
    System(
        "documented",
        "KServe's documented transformer → kserve-sklearnserver, v1",
        "documented",
        _v1,
        quick=((64, 1),),
        slow=True,
    ),
    System("litserve", "LitServe, batches of 64 in 5 ms", "litserve", _litserve, quick=((64, 1),)),
    System("bentoml", "BentoML, adaptive batches", "bentoml", _bentoml, quick=((64, 1),)),
    _predictor_system(SKLEARNSERVER, "v1", FOREST),
    _our_system(SKLEARNSERVER, "v1", FOREST),
    _predictor_system(SKLEARNSERVER, "v2", FOREST),
    _our_system(SKLEARNSERVER, "v2", FOREST),
    _our_system(SKLEARNSERVER, "grpc-v2", FOREST),
    _predictor_system(MLSERVER, "v2", FOREST),
    _our_system(MLSERVER, "v2", FOREST),
    _our_system(MLSERVER, "grpc-v2", FOREST),
    System(
        "predictor-mlserver-v2-2-workers",
        f"predictor alone: {MLSERVER} with 2 workers, v2",
        MLSERVER_2_WORKERS,
        _encoded_v2(get_runtime(MLSERVER).probability_output),
        extra=(FULL_BATCHES,),
    ),
    System(OURS_2_WORKERS, f"ours → {MLSERVER} with 2 workers, v2", OURS_2_WORKERS, _v1, bulk=True),
    _predictor_system(SKLEARNSERVER, "v1", ORIGINAL_FOREST),
    _our_system(SKLEARNSERVER, "v1", ORIGINAL_FOREST),
    _predictor_system(SKLEARNSERVER, "v1", CHOSEN),
    _our_system(SKLEARNSERVER, "v1", CHOSEN),
    _predictor_system(MLSERVER, "v2", CHOSEN),
    _our_system(MLSERVER, "v2", CHOSEN),
    System("front-end", "ours → stub predictor", "front-end", _v1, quick=((64, 1),), constant=True),
    System("noop", "kserve.Model that does nothing", "noop", _v1, quick=((64, 1),), constant=True),
    System("echo", "ASGI echo", "echo", _echo, quick=((64, 1),), constant=True),
)
BY_NAME = {system.name: system for system in SYSTEMS}
