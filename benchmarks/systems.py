"""The systems to compare: the requests that each gets, and the loads that it is measured with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks import request_forms
from benchmarks.answer_check import Request
from benchmarks.launchers import (
    MLSERVER,
    SKLEARNSERVER,
    WORKER_COUNTS,
    our_name,
    scaling_front_end,
    scaling_name,
    scaling_predictor,
)
from benchmarks.models import CHOSEN, FOREST, ORIGINAL_FOREST, ServedModel
from benchmarks.peer_launchers import FORMS, WORKERS
from predictor.runtimes import get_runtime

#: Loads: pairs of clients and candidates per request.
Loads = tuple[tuple[int, int], ...]

CLIENTS = (1, 16, 64, 256)
#: Loads of a full run: requests for one candidate, and requests for one and for 100.
SINGLE: Loads = tuple((clients, 1) for clients in CLIENTS)
GRID: Loads = (*SINGLE, *((clients, 100) for clients in CLIENTS))
#: Load for the highest throughput of a predictor: one connection with batches of 64.
FULL_BATCHES = (1, 64)
#: Loads that show the effect of more workers, on the service and on the predictor alone.
_SCALING: Loads = ((64, 1), (256, 1), (64, 100))
_SCALING_PREDICTOR: Loads = (FULL_BATCHES, (16, 64))


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
    loads
        Loads of a full run.
    quick
        Loads of a quick run; a system without any is not part of it.
    slow
        True if the system is known to be too slow for wrk.
    bulk
        True if its throughput with large requests is measured.
    constant
        True if it answers every candidate with the stub's probability.
    once
        True if the first round is enough.
    """

    name: str
    title: str
    server: str
    request: Callable[[ServedModel], Request]
    loads: Loads = SINGLE
    quick: Loads = ()
    slow: bool = False
    bulk: bool = False
    constant: bool = False
    once: bool = False


#: Our service in the comparisons; the documented transformer has the same predictor.
OURS = our_name(SKLEARNSERVER, "v1", FOREST)
OURS_CHOSEN = our_name(SKLEARNSERVER, "v1", CHOSEN)
#: Our service as the default InferenceService starts it.
OURS_DEFAULT = our_name(MLSERVER, "v2", FOREST)
#: The predictors of the first two, without a transformer.
PREDICTOR = "predictor-sklearnserver-v1"
PREDICTOR_CHOSEN = "predictor-chosen-sklearnserver-v1"
#: Our service with two workers of MLServer.
OURS_2_WORKERS = scaling_name(1, 2)
#: Addition to a system's title for each model.
_MODEL_TITLES = {FOREST: "", ORIGINAL_FOREST: ", original forest", CHOSEN: ", chosen model"}
_QUICK: dict[str, Loads] = {
    OURS: SINGLE,
    OURS_DEFAULT: ((1, 1),),
    OURS_CHOSEN: ((64, 1),),
    PREDICTOR: (FULL_BATCHES,),
}
#: Load of most systems in a quick run.
_64_CLIENTS: Loads = ((64, 1),)


def _our_system(runtime: str, protocol: str, model: str, *, once: bool = False) -> System:
    name = our_name(runtime, protocol, model)
    return System(
        name,
        f"ours{_MODEL_TITLES[model]} → {runtime}, {protocol}",
        name,
        request_forms.v1,
        loads=GRID,
        quick=_QUICK.get(name, ()),
        bulk=True,
        once=once,
    )


def _encoded(runtime: str, protocol: str) -> Callable[[ServedModel], Request]:
    if protocol == "v1":
        return request_forms.encoded_v1
    return request_forms.encoded_v2(get_runtime(runtime).probability_output)


def _predictor_system(runtime: str, protocol: str, model: str, *, once: bool = False) -> System:
    name = our_name(runtime, protocol, model).replace("ours", "predictor")
    return System(
        name,
        f"predictor alone{_MODEL_TITLES[model]}: {runtime}, {protocol}",
        f"{runtime}/{model}",
        _encoded(runtime, protocol),
        loads=(*SINGLE, FULL_BATCHES),
        quick=_QUICK.get(name, ()),
        slow=model == ORIGINAL_FOREST,
        once=once,
    )


def _peers() -> Iterator[System]:
    """Yield the systems that have the forest in the server that the clients call."""
    form = request_forms.candidates_to_predictions
    for model, suffix in FORMS.items():
        original = model == ORIGINAL_FOREST
        title = "" if original else ", serving form"
        loads = GRID if original else SINGLE
        yield _peer(f"litserve{suffix}", f"LitServe{title}, batches of 64 in 5 ms", form, loads)
        yield _peer(f"bentoml{suffix}", f"BentoML{title}, adaptive batches", request_forms.bentoml, loads)
        yield _peer(f"ray{suffix}", f"Ray Serve{title}, batches of 64 in 5 ms", form)
        workers = "" if original else f", {WORKERS} workers"
        yield _peer(f"fastapi{suffix}", f"FastAPI + scikit-learn{title}{workers}", form, slow=original)
    yield System(
        "fastapi-workers",
        f"FastAPI + scikit-learn, {WORKERS} workers",
        "fastapi-workers",
        form,
        slow=True,
        once=True,
    )
    yield _peer("onnx", f"FastAPI + ONNX Runtime, {WORKERS} workers", form)


def _peer(
    name: str,
    title: str,
    form: Callable[[ServedModel], Request],
    loads: Loads = SINGLE,
    *,
    slow: bool = False,
) -> System:
    return System(name, title, name, form, loads=loads, quick=_64_CLIENTS, slow=slow)


def _scaling() -> Iterator[System]:
    """Yield our service and MLServer with several workers each."""
    for predictors in WORKER_COUNTS:
        name = scaling_predictor(predictors)
        title = f"{MLSERVER} with {_workers(predictors)}, v2"
        request = _encoded(MLSERVER, "v2")
        yield System(name, f"predictor alone: {title}", name, request, _SCALING_PREDICTOR, once=True)
        for transformers in WORKER_COUNTS:
            name = scaling_name(transformers, predictors)
            ours = f"ours with {_workers(transformers)} → {title}"
            yield System(name, ours, name, request_forms.v1, _SCALING, bulk=True, once=True)
    for transformers in WORKER_COUNTS:
        name = scaling_front_end(transformers)
        title = f"ours with {_workers(transformers)} → stub predictor"
        yield System(name, title, name, request_forms.v1, _SCALING, constant=True, once=True)


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"


SYSTEMS: tuple[System, ...] = (
    System(
        "tutorial",
        "tutorial's app: Flask, gunicorn",
        "tutorial",
        request_forms.tutorial,
        loads=GRID,
        quick=SINGLE,
        slow=True,
    ),
    System(
        "tutorial-workers",
        f"tutorial's app, {WORKERS} workers",
        "tutorial-workers",
        request_forms.tutorial,
        loads=GRID,
        slow=True,
        once=True,
    ),
    System(
        "documented",
        "KServe's documented transformer → kserve-sklearnserver, v1",
        "documented",
        request_forms.v1,
        loads=GRID,
        quick=_64_CLIENTS,
        slow=True,
    ),
    *_peers(),
    _predictor_system(SKLEARNSERVER, "v1", FOREST),
    _our_system(SKLEARNSERVER, "v1", FOREST),
    _predictor_system(SKLEARNSERVER, "v2", FOREST),
    _our_system(SKLEARNSERVER, "v2", FOREST),
    _our_system(SKLEARNSERVER, "grpc-v2", FOREST, once=True),
    _predictor_system(MLSERVER, "v2", FOREST),
    _our_system(MLSERVER, "v2", FOREST),
    _our_system(MLSERVER, "grpc-v2", FOREST, once=True),
    _predictor_system(SKLEARNSERVER, "v1", ORIGINAL_FOREST, once=True),
    _our_system(SKLEARNSERVER, "v1", ORIGINAL_FOREST, once=True),
    _predictor_system(MLSERVER, "v2", ORIGINAL_FOREST, once=True),
    _predictor_system(SKLEARNSERVER, "v1", CHOSEN, once=True),
    _our_system(SKLEARNSERVER, "v1", CHOSEN),
    _predictor_system(MLSERVER, "v2", CHOSEN, once=True),
    _our_system(MLSERVER, "v2", CHOSEN, once=True),
    *_scaling(),
    System(
        "front-end",
        "ours → stub predictor",
        "front-end",
        request_forms.v1,
        quick=_64_CLIENTS,
        constant=True,
    ),
    System(
        "noop",
        "kserve.Model that does nothing",
        "noop",
        request_forms.v1,
        quick=_64_CLIENTS,
        constant=True,
    ),
    System("echo", "ASGI echo", "echo", request_forms.echo, quick=_64_CLIENTS, constant=True),
)
BY_NAME = {system.name: system for system in SYSTEMS}
