"""Malformed and hostile requests get an error of the client, and the same one over every protocol.

`make fuzz` tries ten thousand random inputs in each test.
"""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import assume, given
from hypothesis import strategies as st
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from tests.support.endpoints import V1_EXPLAIN, V1_PREDICT, V2_INFER
from tests.support.fuzzing import fuzz
from tests.support.malformed_requests import Outcome, Tensor
from training.candidates import SAMPLE, SIGNATURE
from training.generator import generate
from transformer.bundle.signature import Number
from transformer.protocols.tensors import NUMPY_DTYPES

VALID = generate(40, seed=9).candidates
#: One candidate more than the transformer accepts.
TOO_MANY = 51
INTEGERS = [name for name in NUMPY_DTYPES if "INT" in name]
JSON_TYPE = {"content-type": "application/json"}


numbers = st.floats() | st.sampled_from([-0.0, 5e-324, 2.3e-308, 1e308, 1e39, 71.4])
texts = st.one_of(
    st.text(max_size=5).map(str.encode),
    st.binary(max_size=6),
    st.sampled_from([b"\xff\xfe", b"\xed\xa0\x80", b"{}", b"[" * 2_000, b"x" * 5_000]),
)
names = st.text(max_size=5) | st.sampled_from(
    ["x" * 128, "x" * 129, "\U0001f4a9" * 128, "gender\0", "a.b[0]"]
)
dimensions = st.integers(-3, TOO_MANY) | st.sampled_from([2**31 - 1, 2**31, 2**63 - 1, -(2**63)])
shapes = st.lists(dimensions, max_size=4).map(tuple)
datatypes = st.sampled_from([*NUMPY_DTYPES, "BYTES", "STRING", "", "fp64", "FP64\0"])


def one_value(datatype: str) -> st.SearchStrategy[Any]:
    """Draw a value that can be written for the datatype, although it may be out of range."""
    if datatype in INTEGERS:
        bits = max(32, np.dtype(NUMPY_DTYPES[datatype]).itemsize * 8)
        return (
            st.integers(0, 2**bits - 1)
            if datatype[0] == "U"
            else st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        )
    if datatype == "BOOL":
        return st.booleans()
    return numbers if datatype in NUMPY_DTYPES else texts


def some_values(datatype: str, count: int) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(one_value(datatype), min_size=count, max_size=count).map(tuple)


@st.composite
def damaged_copy(draw: st.DrawFn, tensor: Tensor) -> Tensor:
    """Draw a copy of the tensor with something wrong in it."""
    count = len(tensor.values)
    match draw(st.sampled_from(["name", "shape", "datatype", "narrow", "value", "length", "raw", "both"])):
        case "name":
            return replace(tensor, name=draw(names))
        case "shape":
            return replace(tensor, shape=draw(shapes))
        case "datatype":
            datatype = draw(datatypes)
            return replace(tensor, datatype=datatype, values=draw(some_values(datatype, count)))
        case "narrow" if tensor.datatype == "FP64":
            # A fraction in FP64 is another number in FP16, and cannot be expressed in INT8.
            datatype = draw(st.sampled_from(["FP16", "FP32", *INTEGERS]))
            held = float if datatype in {"FP16", "FP32"} else int
            return replace(tensor, datatype=datatype, values=tuple(held(value) for value in tensor.values))
        case "value" if count:
            place = draw(st.integers(0, count - 1))
            value = draw(one_value(tensor.datatype))
            return replace(tensor, values=(*tensor.values[:place], value, *tensor.values[place + 1 :]))
        case "length":
            return replace(tensor, values=draw(some_values(tensor.datatype, draw(st.integers(0, 5)))))
        case "raw":
            return replace(tensor, garbage=draw(st.binary(max_size=64)))
        case "both":
            return replace(tensor, both=True)
    return tensor


@st.composite
def contents(draw: st.DrawFn) -> list[Tensor]:
    """Draw tensors that are valid, or were before changes."""
    count = draw(st.sampled_from([1, 2, 3, TOO_MANY - 1, TOO_MANY]))
    rows = (draw(st.lists(st.sampled_from(VALID), min_size=1, max_size=3)) * count)[:count]
    if draw(st.integers(0, 4)) == 0:
        tensors = [Tensor("candidates", "BYTES", (count,), tuple(json.dumps(row).encode() for row in rows))]
    else:
        tensors = [
            Tensor(
                field.name,
                field.datatype,
                draw(st.sampled_from([(count,), (count, 1)])),
                tuple(
                    float(str(row[field.name]))
                    if isinstance(field, Number)
                    else str(row[field.name]).encode()
                    for row in rows
                ),
            )
            for field in SIGNATURE.fields
        ]
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(tensors) - 1)) if tensors else 0
        match draw(st.sampled_from(["damage"] * 6 + ["drop", "double", "more"])):
            case "damage" if tensors:
                tensors[place] = draw(damaged_copy(tensors[place]))
            case "drop":
                del tensors[place : place + 1]
            case "double" if tensors:
                tensors.append(tensors[place])
            case "more":
                tensors.append(Tensor(draw(names), "INT8", (count,), (1,) * count))
    return tensors


def assert_same(one: Outcome | None, other: Outcome | None) -> None:
    """Check that two outcomes are the same. None means that a protocol cannot express the content."""
    if one is None or other is None:
        return
    assert one.status == other.status, (one, other)
    if one.status == "answered":
        assert one.content == pytest.approx(other.content, abs=1e-12)
    elif "not both" not in one.content:
        # The error for two contents at once differs between the protocols.
        assert one.content == other.content


@fuzz(150)
@given(tensors=contents())
def test_tensors_get_the_same_answer_or_error_over_rest_and_grpc(tensors, ask):
    typed, raw = ask.v2_json(tensors), ask.v2_binary(tensors)
    assert_same(typed, ask.grpc_typed(tensors))
    assert_same(raw, ask.grpc_raw(tensors))
    if not any(tensor.both or tensor.garbage is not None for tensor in tensors) and typed and raw:
        assert typed.status == raw.status, (typed, raw)
        if typed.status == "answered":
            assert_same(typed, raw)


def test_a_long_name_makes_no_error_too_long_for_grpc(ask):
    tensors = [Tensor("\U0001f4a9" * 128, "BYTES", (20,), (b"{}",) * 20)]
    error = ask.v2_json(tensors)
    assert error.content.endswith("and 220 more problems")
    assert_same(error, ask.grpc_typed(tensors))


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([-0.0, 5e-324, 1e308, 71, 2**53 + 1]),
    st.text(st.characters(codec="utf-8"), max_size=6),
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)


#: Any JSON value, a few levels deep.
anything = scalars | containers(scalars | containers(scalars))


@st.composite
def candidates(draw: st.DrawFn) -> Any:
    """Draw a candidate that usually has strange values."""
    if draw(st.integers(0, 19)) == 0:
        return draw(anything)
    row: dict[str, Any] = dict(draw(st.sampled_from(VALID)))
    for name in draw(st.lists(st.sampled_from([*SIGNATURE.names, "other"]), max_size=3)):
        row[name] = draw(anything)
    for name in draw(st.lists(st.sampled_from(SIGNATURE.names), max_size=1)) if draw(st.booleans()) else ():
        row.pop(name, None)
    return row


@fuzz(150)
@given(rows=st.lists(candidates(), min_size=1, max_size=3))
def test_candidates_get_the_same_answer_or_error_over_v1_v2_and_grpc(rows, ask):
    # V1 reads a first row of these forms as a table, as KServe's servers do.
    assume(not (isinstance(rows[0], list) and rows[0] and isinstance(rows[0][0], dict)))
    assume(not (isinstance(rows[0], dict) and rows[0] and all(isinstance(v, list) for v in rows[0].values())))
    first = ask.v1(rows)
    if first.status != "answered":
        first = Outcome(first.status, first.content.replace("instances[", "inputs.candidates["))
    documents = tuple(json.dumps(row).encode() for row in rows)
    tensors = [Tensor("candidates", "BYTES", (len(rows),), documents)]
    for send in (ask.v2_json, ask.v2_binary, ask.grpc_typed, ask.grpc_raw):
        assert_same(first, send(tensors))


#: Well-formed requests to change: path, JSON, and binary data.
FIELDS = [
    {"name": one.name, "datatype": one.datatype, "shape": [1], "data": [SAMPLE[one.name]]}
    for one in SIGNATURE.fields
]
EVENT = {
    "specversion": "1.0",
    "id": "1",
    "source": "here",
    "type": "candidate",
    "time": "2026-01-01T00:00:00Z",
    "data": {"instances": [SAMPLE]},
}
BINARY = {"name": "ssc_p", "datatype": "FP64", "shape": [2], "parameters": {"binary_data_size": 16}}
TEXT = {"name": "gender", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 10}}
OUTPUT = {"name": "placement", "parameters": {"binary_data": True}}
REQUESTS: list[tuple[str, Any, bytes]] = [
    (V1_PREDICT, {"instances": [SAMPLE]}, b""),
    (V1_PREDICT, EVENT, b""),
    (
        V2_INFER,
        {"id": "1", "inputs": FIELDS, "outputs": [OUTPUT], "parameters": {"binary_data_output": True}},
        b"",
    ),
    (V2_INFER, {"inputs": [BINARY, TEXT]}, bytes(16) + b"\1\0\0\0M\1\0\0\0F"),
    (V1_EXPLAIN, {"instances": [SAMPLE]}, b""),
    ("/v2/models/placement/versions/v1/infer", {"inputs": FIELDS}, b""),
    ("/v2/repository/models/placement/unload", {}, b""),
]
HEADERS = [
    ("content-type", "text/plain"),
    ("content-type", "application/cloudevents+json"),
    ("content-type", "application/octet-stream"),
    ("content-type", "application/json; charset=utf-16"),
    ("content-encoding", "gzip"),
    ("ce-specversion", "1.0"),
    ("ce-id", "1"),
    ("ce-source", "here"),
    ("ce-type", "candidate"),
    ("ce-time", "never"),
    ("ce-contenttype", "application/json"),
    ("authorization", b"Bearer \xff"),
    ("x-b3-traceid", ""),
]


@st.composite
def rewritten(draw: st.DrawFn, document: Any) -> Any:
    """Draw a copy of a JSON document with one value replaced, removed or added."""
    if not isinstance(document, (dict, list)) or not document or draw(st.integers(0, 3)) == 0:
        return draw(anything)
    keys = list(document) if isinstance(document, dict) else range(len(document))
    key = draw(st.sampled_from(keys))
    copy: Any = document.copy()
    match draw(st.sampled_from(["in", "in", "in", "drop", "add"])):
        case "in":
            copy[key] = draw(rewritten(document[key]))
        case "drop":
            del copy[key]
        case "add" if isinstance(copy, dict):
            copy[draw(st.text(max_size=3))] = draw(anything)
        case "add":
            copy.append(draw(anything))
    return copy


@st.composite
def garbled(draw: st.DrawFn, body: bytes) -> bytes:
    """Draw a copy of bytes with some removed, changed, doubled or inserted."""
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(body)))
        end = min(len(body), start + draw(st.integers(0, 40)))
        put = draw(st.one_of(st.just(b""), st.binary(max_size=4), st.just(body[start:end] * 2)))
        body = body[:start] + put + body[end:]
    return body


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes, dict[str, str | bytes]]:
    """Draw path, body and headers of a request with something wrong in it."""
    path, document, binary = draw(st.sampled_from(REQUESTS))
    for _ in range(draw(st.integers(0, 2))):
        document = draw(rewritten(document))
    head = json.dumps(document).encode()
    headers: dict[str, str | bytes] = {}
    if binary:
        headers["inference-header-content-length"] = str(len(head))
    if draw(st.integers(0, 4)) == 0:
        length = st.integers(-1, len(head) + len(binary) + 1).map(str)
        strange: list[str | bytes] = ["", "1e3", "9" * 30, b"\xb2"]
        headers["inference-header-content-length"] = draw(length | st.sampled_from(strange))
    if draw(st.integers(0, 2)) == 0:
        headers |= dict(draw(st.lists(st.sampled_from(HEADERS), max_size=6)))
    body = head + binary
    return path, draw(garbled(body)) if draw(st.booleans()) else body, headers


@fuzz(300)
@given(request=requests())
def test_a_malformed_rest_request_gets_an_error_of_the_client(request, ask):
    path, body, headers = request
    ask.rest(path, body, headers)


MESSAGES = [
    pb.ModelInferRequest(
        model_name="placement",
        id="1",
        inputs=[
            {"name": "candidates", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [b"{}"]}}
        ],
        outputs=[{"name": "placement"}],
        parameters={"content_type": {"string_param": "pd"}},
    ).SerializeToString(),
    pb.ModelInferRequest(
        model_name="placement",
        inputs=[{"name": "ssc_p", "datatype": "FP64", "shape": [1]}],
        raw_input_contents=[bytes(8)],
    ).SerializeToString(),
]


@fuzz(150)
@given(message=st.sampled_from(MESSAGES).flatmap(garbled) | st.binary(max_size=40))
def test_a_malformed_grpc_message_gets_an_error_of_the_client(message, ask):
    answer = ask.grpc(message)
    try:
        pb.ModelInferRequest.FromString(message)
    except DecodeError:
        assert answer == ("invalid", "cannot parse the request message for this method")
    else:
        assert answer.content != "cannot parse the request message for this method"
