"""A transformer in this process whose connections to a faulty predictor are all verified."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.faulty_predictor import FaultyPredictor
from tests.support.in_process_transformer import InProcessTransformer, in_process_transformer
from tests.support.waiting import wait_until
from training.candidates import SAMPLE
from transformer.metrics import CONNECTIONS

#: Connections of each transformer: one for each protocol that a test asks over at the same time.
CONNECTIONS_EACH = 3


@dataclass
class ConnectedTransformer(InProcessTransformer):
    """A transformer and the outcome of a good request.

    Attributes
    ----------
    hop
        Protocol between the transformer and the predictor.
    answer
        Status, probabilities and Retry-After of a successful request for `SAMPLE` twice.
    tasks
        Number of asyncio tasks while the transformer is idle.
    """

    hop: str
    answer: tuple[str, Any, bool]
    tasks: int


@contextlib.asynccontextmanager
async def connected_transformer(
    predictor: FaultyPredictor,
    bundle: Path,
    hop: str,
    *arguments: str,
    connections: int = CONNECTIONS_EACH,
    request_timeout_s: float = 30,
) -> AsyncIterator[ConnectedTransformer]:
    """Start a transformer.

    Parameters
    ----------
    hop
        A protocol, such as ``v2``, or a protocol with verification by request: ``v2 by request``.
    """
    protocol, _, verify = hop.partition(" by ")
    options = [
        f"--predictor_protocol={protocol}",
        f"--predictor_request_timeout_seconds={request_timeout_s}",
        f"--predictor_connections={connections}",
        *([f"--verify={verify}"] if verify else []),
        *arguments,
    ]
    (probability,) = predictor.reference.probabilities([SAMPLE])
    async with in_process_transformer(bundle, predictor.address, *options) as running:
        await wait_until(lambda: usable_connections() == connections)
        answer = ("200", pytest.approx([probability] * 2, abs=1e-12), False)
        yield ConnectedTransformer(
            **vars(running), hop=protocol, answer=answer, tasks=len(asyncio.all_tasks())
        )


@contextlib.contextmanager
def transformer_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Capture the log of the transformer, whose loggers do not propagate."""
    with caplog.at_level(logging.INFO), contextlib.ExitStack() as stack:
        for logger in map(logging.getLogger, ("kserve", "kserve.trace")):
            logger.addHandler(caplog.handler)
            stack.callback(logger.removeHandler, caplog.handler)
        yield caplog


def usable_connections() -> float:
    """Return the number of verified connections of all transformers in this process."""
    samples = (sample for metric in CONNECTIONS.collect() for sample in metric.samples)
    return sum(sample.value for sample in samples if sample.labels["state"] == "usable")
