"""Transformers in front of two versions at a time, as in a canary."""

import contextlib
import random
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from inferenceservice.local.forwarder import Backend
from tests.support.endpoints import V1_PREDICT
from tests.support.fake_mlserver import FakeMLServer
from tests.support.in_process_transformer import InProcessTransformer, in_process_transformer
from tests.support.load_balancers import balanced_by_connection
from tests.support.sklearn_reference import SklearnReference
from tests.support.waiting import wait_until

#: Arguments of every transformer here.
ARGUMENTS = ("--predictor_protocol=v2", "--predictor_connections=2")
#: How calls reach one of the two versions.
KINDS = ("by connection", "by request")


@contextlib.asynccontextmanager
async def canary(
    kind: str,
    bundle: Path,
    references: Mapping[str, SklearnReference],
    candidate: dict[str, Any],
    *arguments: str,
) -> AsyncIterator[InProcessTransformer]:
    """Serve a bundle in front of two models, each for half of the traffic; both have answered when it begins.

    Parameters
    ----------
    references
        The models, by the version that their answers name.
    candidate
        A candidate that both accept.
    """
    async with contextlib.AsyncExitStack() as stack:
        if kind == "by request":
            either = FakeMLServer(lambda: random.choice([*references.values()]))
            address = (await stack.enter_async_context(either.running())).address
            arguments = ("--verify=request", *arguments)
        else:
            predictors = [
                await stack.enter_async_context(FakeMLServer(reference).running())
                for reference in references.values()
            ]
            backends = [Backend(predictor.address) for predictor in predictors]
            _, port = await stack.enter_async_context(balanced_by_connection(*backends))
            address, arguments = f"127.0.0.1:{port}", ("--predictor_connection_age=0.2", *arguments)
        transformer = await stack.enter_async_context(
            in_process_transformer(bundle, address, *ARGUMENTS, *arguments)
        )
        answered: set[str] = set()

        async def serves_both() -> bool:
            response = await transformer.http.post(V1_PREDICT, json={"instances": [candidate]})
            answered.add(response.headers["x-model-version"])
            return answered == set(references)

        await wait_until(serves_both)
        yield transformer
