"""The stock servers answer each kind of question over the protocols that docs/questions.md names."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from predictor.runtimes import get_runtime
from tests.support.in_process_transformer import in_process_transformer
from tests.support.kinds import NAME, QUESTIONS, train_question
from tests.support.sync_processes import running_predictor

ROWS: list[dict[str, Any]] = [
    {"size": 1.0, "age": 0.5, "town": "Ulm"},
    {"size": 9.5, "age": 5.5, "town": "Bonn"},
    {"size": 5, "town": "Köln"},
]
CASES = [
    ("kserve-mlserver", "three texts", ("v2", "grpc-v2")),
    ("kserve-mlserver", "three texts without probabilities", ("v2", "grpc-v2")),
    ("kserve-mlserver", "booleans without probabilities", ("v2", "grpc-v2")),
    ("kserve-mlserver", "a number, by a forest", ("v2", "grpc-v2")),
    ("kserve-sklearnserver", "three texts without probabilities", ("v1",)),
    ("kserve-sklearnserver", "three whole numbers without probabilities", ("v1", "v2", "grpc-v2")),
    ("kserve-sklearnserver", "a number, by a forest", ("v1", "v2", "grpc-v2")),
]


@pytest.mark.parametrize(("name", "question", "protocols"), CASES)
def test_a_stock_server_gives_scikit_learns_answers(name, question, protocols, tmp_path):
    trained = train_question(QUESTIONS[question], tmp_path)
    runtime = get_runtime(name)
    with running_predictor(runtime, trained.directory, NAME, env=runtime.spec_env) as process:
        for protocol in protocols:
            port = process.grpc_port if protocol == "grpc-v2" else process.http_port
            arguments = [
                f"--predictor_protocol={protocol}",
                f"--predictor_output={runtime.probability_output}",
                *(["--verify=request"] if protocol == "grpc-v2" else []),
            ]
            given = asyncio.run(answers(trained.directory, f"127.0.0.1:{port}", arguments))
            for one, expected in zip(given, trained.answers(ROWS), strict=True):
                assert list(one) == list(expected)
                for key, value in expected.items():
                    exact = isinstance(value, (str, bool, int))
                    assert one[key] == (value if exact else pytest.approx(value, rel=1e-9)), protocol


async def answers(directory: Path, address: str, arguments: list[str]) -> list[dict[str, Any]]:
    async with in_process_transformer(directory, address, *arguments) as running:
        response = await running.http.post(f"/v1/models/{NAME}:predict", json={"instances": ROWS})
        assert response.status_code == 200, response.text
        assert response.headers["x-model-version"] == "v1"
        predictions: list[dict[str, Any]] = response.json()["predictions"]
        return predictions
