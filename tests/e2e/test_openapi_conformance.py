"""The transformer conforms to its OpenAPI description: schemathesis sends requests and checks responses."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fuzzing import MANY

#: Runs in another process: in this one it would change how hypothesis draws and reports for all tests.
SCHEMATHESIS = (sys.executable, "-m", "schemathesis.cli", "run")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
#: Only V1's description is complete enough for these checks.
EXACT = ("positive_data_acceptance", "negative_data_rejection")
REJECTED = '[checks.negative_data_rejection]\nexpected-statuses = ["400", "413"]\n'


@pytest.fixture(scope="session")
def url(transformer_process):
    return f"http://127.0.0.1:{transformer_process.http_port}"


@pytest.mark.parametrize(
    ("operations", "checks"),
    [
        pytest.param(
            ["--include-operation-id=predict", "--include-operation-id=explain"], (*CHECKS, *EXACT), id="V1"
        ),
        pytest.param(
            ["--exclude-operation-id=predict", "--exclude-operation-id=explain"],
            CHECKS,
            id="other operations",
        ),
    ],
)
def test_every_response_conforms_to_the_description(operations, checks, url, tmp_path: Path):
    deterministic = ["--max-examples=30", "--generation-deterministic"]
    drawn = deterministic if MANY is None else [f"--max-examples={MANY}", "--generation-database=none"]
    (tmp_path / "schemathesis.toml").write_text(REJECTED)
    run = subprocess.run(
        [
            *SCHEMATHESIS,
            f"{url}/openapi.json",
            f"--checks={','.join(checks)}",
            "--phases=coverage,fuzzing",
            "--no-color",
            *operations,
            *drawn,
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
