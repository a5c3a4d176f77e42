"""The candidate schema of the OpenAPI description accepts exactly the candidates that validation accepts."""

import json

import jsonschema_rs
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support.fuzzing import fuzz
from tests.unit.test_encoder import complete, mutilated, rows_of, signatures, valid
from transformer.bundle.validation import validate
from transformer.errors import InvalidRequest
from transformer.protocols.json_body import parse_json
from transformer.protocols.openapi import candidate_schema


@fuzz(150)
@given(data=st.data(), unknown=st.sampled_from(["refuse", "ignore"]))
def test_the_schema_and_validation_accept_the_same_candidates(data, unknown):
    signature = data.draw(signatures())
    candidate = data.draw(valid(signature) | complete(signature) | mutilated(signature))
    try:
        # The transformer parses it like this.
        parsed = parse_json(json.dumps(candidate, allow_nan=False))
    except (ValueError, InvalidRequest):
        return
    # The decimal digits of a larger bound are not exactly its value.
    values = parsed.values() if isinstance(parsed, dict) else ()
    assume(not any(isinstance(value, int) and abs(value) > 2**53 for value in values))
    # A name that a schema cannot describe: that of a missing field in another spelling.
    assume(not signature.misspelled(parsed if isinstance(parsed, dict) else ()))
    try:
        validate(rows_of([parsed], signature), signature, unknown, newest=signature)
        accepted = True
    except InvalidRequest:
        accepted = False
    assert jsonschema_rs.is_valid(candidate_schema(signature, unknown), parsed) == accepted
