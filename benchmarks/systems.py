"""The systems side by side: what each is asked, and where it is measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.asking import Request
from benchmarks.kinds import MLSERVER, MLSERVER_2_WORKERS, OURS_2_WORKERS, SKLEARNSERVER, WORKERS, our_name
from benchmarks.models import CHOSEN, FOREST, ServedModel
from benchmarks.stub_predictor import PROBABILITY
from predictor.runtimes import get_runtime
from training.candidates import Candidate


@dataclass(frozen=True)
class System:
    """A row of the results.

    Attributes
    ----------
    title
        What it is, for people.
    server
        Name of the server that is asked.
    request
        How, given the model.
    quick
        What a quick run measures of it: clients and candidates a request.
    extra
        What a full run measures besides the loads that all systems get.
    slow
        Whether it is known that answers come too slowly for wrk.
    bulk
        Whether many candidates are sent to it.
    constant
        Whether it answers every candidate with the stub's probability.
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


# What systems are asked.


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
        lambda candidates: {"instances": model.encoded(candidates).tolist()},
        lambda content: model.positive(content["predictions"]),
    )


def _encoded_v2(output: str) -> Callable[[ServedModel], Request]:
    def request(model: ServedModel) -> Request:
        def body(candidates: Sequence[Candidate]) -> object:
            matrix = model.encoded(candidates)
            tensor = {"name": "features", "datatype": "FP64", "shape": matrix.shape}
            return {
                "inputs": [{**tensor, "data": matrix.ravel().tolist()}],
                "outputs": [{"name": output}],
            }

        def read(content: Any) -> list[float]:  # noqa: ANN401 (JSON)
            (tensor,) = (one for one in content["outputs"] if one["name"] == output)
            width = tensor["shape"][1]
            data = tensor["data"]
            return model.positive([data[start : start + width] for start in range(0, len(data), width)])

        return Request("/v2/models/placement/infer", body, read)

    return request


#: Ours in the comparisons: in front of the predictor that the documented transformer has, too.
OURS: Final = our_name(SKLEARNSERVER, "v1", FOREST)
OURS_CHOSEN: Final = our_name(SKLEARNSERVER, "v1", CHOSEN)
#: The predictors that these have, alone.
PREDICTOR: Final = "predictor-sklearnserver-v1"
PREDICTOR_CHOSEN: Final = "predictor-chosen-sklearnserver-v1"
#: What a predictor is fed at most with: batches of 64, one after the other.
BOUND: Final = (1, 64)


def _our_system(runtime: str, protocol: str, model: str) -> System:
    name = our_name(runtime, protocol, model)
    quick: dict[str, tuple[tuple[int, int], ...]] = {
        OURS: ((64, 1), (256, 1)),
        OURS_CHOSEN: ((64, 1),),
    }
    what = "ours" if model == FOREST else "ours, chosen model"
    title = f"{what} → {runtime}, {protocol}"
    return System(name, title, name, _v1, quick=quick.get(name, ()), bulk=True)


def _predictor_system(runtime: str, protocol: str, model: str) -> System:
    name = our_name(runtime, protocol, model).replace("ours", "predictor")
    what = "predictor alone" if model == FOREST else "predictor alone, chosen model"
    request = _encoded_v1 if protocol == "v1" else _encoded_v2(get_runtime(runtime).probability_output)
    quick: tuple[tuple[int, int], ...] = (BOUND,) if name == PREDICTOR else ()
    title = f"{what}: {runtime}, {protocol}"
    return System(
        name, title, f"{runtime}/{model}", request, quick=quick, extra=(BOUND,), slow=model == FOREST
    )


SYSTEMS: Final[tuple[System, ...]] = (
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
        extra=(BOUND,),
        slow=True,
    ),
    System(OURS_2_WORKERS, f"ours → {MLSERVER} with 2 workers, v2", OURS_2_WORKERS, _v1, bulk=True),
    _predictor_system(SKLEARNSERVER, "v1", CHOSEN),
    _our_system(SKLEARNSERVER, "v1", CHOSEN),
    _predictor_system(MLSERVER, "v2", CHOSEN),
    _our_system(MLSERVER, "v2", CHOSEN),
    System("front-end", "ours → stub predictor", "front-end", _v1, quick=((64, 1),), constant=True),
    System("noop", "kserve.Model that does nothing", "noop", _v1, quick=((64, 1),), constant=True),
    System("echo", "ASGI echo", "echo", _echo, quick=((64, 1),), constant=True),
)
BY_NAME: Final = {system.name: system for system in SYSTEMS}
