"""A transformer in front of a fake MLServer, both in the test's event loop."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.support.endpoints import V1_PREDICT
from tests.support.fake_mlserver import FakeMLServer
from tests.support.in_process_transformer import InProcessTransformer, in_process_transformer
from tests.support.sklearn_reference import SklearnReference

#: Starts both with further arguments of the transformer.
Start = Callable[..., Awaitable[tuple[InProcessTransformer, FakeMLServer]]]


async def start_fake_service(
    stack: AsyncExitStack,
    bundle: Path,
    served: SklearnReference | Callable[[], SklearnReference] | None,
    *arguments: str,
    explains: bool = True,
    ready: bool = True,
) -> tuple[InProcessTransformer, FakeMLServer]:
    """Serve a bundle over V2 in front of a version, until the stack ends.

    Parameters
    ----------
    served, explains
        See `FakeMLServer`.
    ready
        Wait until the transformer is ready.
    """
    predictor = await stack.enter_async_context(FakeMLServer(served).running())
    predictor.explains = explains
    transformer = await stack.enter_async_context(
        in_process_transformer(bundle, predictor.address, "--predictor_protocol=v2", *arguments, ready=ready)
    )
    return transformer, predictor


async def ask(transformer: InProcessTransformer, *rows: dict[str, Any]) -> tuple[str, list[float]]:
    """Return the version and the probabilities of an answer over V1."""
    response = await transformer.http.post(V1_PREDICT, json={"instances": list(rows)})
    assert response.status_code == 200, response.text
    return (
        response.headers["x-model-version"],
        [one["placement_probability"] for one in response.json()["predictions"]],
    )
