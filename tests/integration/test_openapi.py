"""The served description is true: what it calls valid is answered, and every answer is as it says."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import jsonschema_rs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support.fuzzing import MANY, fuzz
from tests.unit.test_encoder import complete, mutilated, rows_of, signatures, valid
from training.candidates import SAMPLE, SIGNATURE
from transformer.bundle.validation import validate
from transformer.errors import InvalidRequest
from transformer.protocols.json_body import parse_json
from transformer.protocols.openapi import candidate_schema, describe

#: What the transformer of these tests serves.
DESCRIPTION = describe("placement", "placement", "v1", SIGNATURE, max_candidates=50)
#: In a process of its own: within this one it would change how all of hypothesis draws and reports.
SCHEMATHESIS = (sys.executable, "-m", "schemathesis.cli", "run")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
#: V1's description says all that there is to a request.
EXACT = ("positive_data_acceptance", "negative_data_rejection")
REJECTED = '[checks.negative_data_rejection]\nexpected-statuses = ["400", "413"]\n'


@pytest.fixture(scope="session")
def url(transformer_process):
    return f"http://127.0.0.1:{transformer_process.http_port}"


def test_what_is_served_is_this_description(url):
    assert httpx.get(f"{url}/openapi.json").json() == DESCRIPTION


@pytest.mark.parametrize(
    ("operations", "checks"),
    [
        pytest.param(["--include-operation-id=predict"], (*CHECKS, *EXACT), id="predict"),
        pytest.param(["--exclude-operation-id=predict"], CHECKS, id="all others"),
    ],
)
def test_every_answer_is_as_described(operations, checks, url, tmp_path: Path):
    few = ["--max-examples=30", "--generation-deterministic"]
    drawn = few if MANY is None else [f"--max-examples={MANY}", "--generation-database=none"]
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


def test_every_placeholder_of_the_template_is_filled_in():
    assert "<" not in json.dumps(DESCRIPTION)
    # Names are not templates themselves.
    described = describe("a<version>", "b", "v1", SIGNATURE, max_candidates=50)
    assert "/v1/models/a<version>:predict" in described["paths"]
    assert described["components"]["schemas"]["ModelReady"]["properties"]["name"] == {"const": "a<version>"}


def test_routes_that_always_refuse_are_not_described(url):
    described = DESCRIPTION["paths"]
    for path in ("/v1/models/placement:explain", "/v2/repository/models/placement/load"):
        assert path not in described
        assert httpx.post(url + path, json={"instances": [SAMPLE]}).status_code == 501


@fuzz(150)
@given(data=st.data(), unknown=st.sampled_from(["refuse", "ignore"]))
def test_a_candidate_is_valid_by_the_description_just_when_it_is_by_validation(data, unknown):
    signature = data.draw(signatures())
    candidate = data.draw(valid(signature) | complete(signature) | mutilated(signature))
    try:
        # As it comes to the service.
        parsed = parse_json(json.dumps(candidate, allow_nan=False))
    except (ValueError, InvalidRequest):
        return
    # Beyond, the decimal digits of a bound are not the number that the bound is.
    values = parsed.values() if isinstance(parsed, dict) else ()
    assume(not any(isinstance(value, int) and abs(value) > 2**53 for value in values))
    try:
        validate(rows_of([parsed], signature), signature, unknown, newest=signature)
        accepted = True
    except InvalidRequest:
        accepted = False
    assert jsonschema_rs.is_valid(candidate_schema(signature, unknown), parsed) == accepted
