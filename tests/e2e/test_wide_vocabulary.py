"""A vocabulary of 13,000 features, such as pairs of places, is served by a stock server."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from benchmarks.wide import dataset
from predictor.runtimes import get_runtime
from tests.support.in_process_transformer import in_process_transformer
from tests.support.sklearn_reference import SklearnReference
from tests.support.sync_processes import running_predictor
from training.train import train

#: MLServer takes seconds to read 13,000 named columns, so one connection is verified, and kept.
ONE_CONNECTION = ("--predictor_connections=1", "--predictor_connection_age=600")


@pytest.mark.parametrize(
    ("name", "protocol", "more"),
    [("kserve-mlserver", "v2", ONE_CONNECTION), ("kserve-sklearnserver", "v1", ())],
)
def test_a_stock_server_scores_many_rows_of_a_wide_vocabulary(name, protocol, more, tmp_path):
    made = dataset(120)
    uri = train(made, storage=tmp_path, name="trip", estimator="forest-50").uri
    runtime = get_runtime(name)
    with running_predictor(runtime, Path(uri), "trip", env=runtime.spec_env) as process:
        address = f"127.0.0.1:{process.http_port}"
        rows: list[dict[str, Any]] = [*made.candidates, {"pair": "nowhere", "distance": 3}]
        output = f"--predictor_output={runtime.probability_output}"
        arguments = [f"--predictor_protocol={protocol}", output, *more]
        given = asyncio.run(probabilities(Path(uri), address, rows, arguments))
        assert given == pytest.approx(SklearnReference(Path(uri)).probabilities(rows), abs=1e-12)


async def probabilities(
    directory: Path, address: str, rows: list[dict[str, Any]], arguments: list[str]
) -> list[float]:
    async with in_process_transformer(directory, address, *arguments) as running:
        response = await running.http.post("/v1/models/trip:predict", json={"instances": rows})
        assert response.status_code == 200, response.text
        return [one["trip_probability"] for one in response.json()["predictions"]]
