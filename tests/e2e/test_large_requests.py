"""Large requests of many small parts are refused, and leave no memory behind.

The transformer is a process, whose memory is measured.
"""

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from tests.support.endpoints import V1_PREDICT, V2_INFER
from transformer.protocols.json_body import MAX_VALUES

MAX_REQUEST_BYTES = 8 * 2**20


def filled(start: bytes, item: bytes, end: bytes) -> bytes:
    """Return a body with as many items as fit into a request."""
    return start + item * ((MAX_REQUEST_BYTES - len(start) - len(end)) // len(item)) + end


def different_tensors() -> bytes:
    one = '{"name":"%x","datatype":"INT8","shape":[1],"data":[1]}'
    tensors = [one % number for number in range(MAX_REQUEST_BYTES // 64)]
    return f'{{"inputs":[{",".join([*tensors, tensors[-1]])}]}}'.encode()


def empty_strings() -> tuple[bytes, dict[str, str]]:
    count = MAX_REQUEST_BYTES // 4 - 100
    parameters = {"binary_data_size": 4 * count}
    tensor = {"name": "gender", "datatype": "BYTES", "shape": [count], "parameters": parameters}
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + bytes(4 * count), {"inference-header-content-length": str(len(head))}


def elements_of_json() -> list[bytes]:
    """Return as many JSON elements as fit into a request, each below the limit of values."""
    one = b"[" + b"[]," * (MAX_VALUES // 4) + b"[]]"
    return [one] * ((MAX_REQUEST_BYTES - 1000) // len(one))


def json_in_elements() -> tuple[bytes, dict[str, str]]:
    data = b"".join(len(one).to_bytes(4, "little") + one for one in elements_of_json())
    parameters = {"binary_data_size": len(data)}
    shape = [len(elements_of_json())]
    tensor = {"name": "candidates", "datatype": "BYTES", "shape": shape, "parameters": parameters}
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + data, {"inference-header-content-length": str(len(head))}


def json_in_base64(more: dict[str, str] | None = None) -> tuple[bytes, dict[str, str]]:
    data = filled(b'{"instances":[', b"[],", b"[]]}")[: MAX_REQUEST_BYTES // 4 * 3 - 1000]
    event = {"specversion": "1.0", "id": "1", "source": "a", "type": "b"}
    headers = {f"ce-{name}": value for name, value in event.items()}
    headers |= {"content-type": "application/cloudevents+json", **(more or {})}
    return json.dumps({**event, "data_base64": b64encode(data).decode()}).encode(), headers


TENSOR = b'{"name":"ssc_p","datatype":"FP64","shape":[1],"data":[1]}'
LARGE: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "instances that are none": (V1_PREDICT, filled(b'{"instances":[', b"[],", b"[]]}"), {}),
    "depth": (V1_PREDICT, filled(b'{"instances":', b"[", b""), {}),
    "keys": (V1_PREDICT, filled(b'{"instances":[{', b'"":0,', b'"":0}]}'), {}),
    "tensors that are none": (V2_INFER, filled(b'{"inputs":[', b"{},", b"{}]}"), {}),
    "tensors of one name": (V2_INFER, filled(b'{"inputs":[', TENSOR + b",", TENSOR + b"]}"), {}),
    "tensors of two names": (V2_INFER, different_tensors(), {}),
    "a shape of strings": (V2_INFER, filled(b'{"inputs":[{"shape":[', b'"",', b'""]}]}'), {}),
    "a shape": (V2_INFER, filled(b'{"inputs":[{"name":"a","datatype":"INT8","shape":[', b"1,", b"1]}]}"), {}),
    "outputs that are none": (V2_INFER, filled(b'{"inputs":[],"outputs":[', b"0,", b"0]}"), {}),
    "empty strings": (V2_INFER, *empty_strings()),
    "JSON in a few elements": (V2_INFER, *json_in_elements()),
    "JSON in base64": (V1_PREDICT, *json_in_base64()),
    "JSON in base64, with its type": (V1_PREDICT, *json_in_base64({"ce-contenttype": "application/json"})),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_rest_request_of_many_small_parts_is_refused(name, ask):
    path, body, headers = LARGE[name]
    assert len(body) <= MAX_REQUEST_BYTES
    assert ask.rest(path, body, headers).status in {"invalid", "too large"}


MODEL = pb.ModelInferRequest(model_name="placement").SerializeToString()
NOTHING = pb.ModelInferRequest(inputs=[{}]).SerializeToString()


def of(**part: Any) -> bytes:
    """Return a message with many copies of a part."""
    return filled(MODEL, pb.ModelInferRequest(**part).SerializeToString(), b"")


def of_one_tensor(part: bytes, **head: Any) -> bytes:
    """Return a message with one tensor that has many copies of a part."""
    tensor = pb.ModelInferRequest.InferInputTensor(**head).SerializeToString()
    tensor += part * ((MAX_REQUEST_BYTES - 1000) // len(part))
    # Field 5 and its length.
    return MODEL + b"\x2a" + varint(len(tensor)) + tensor


def of_packed_shape() -> bytes:
    """Return a message with one tensor whose packed shape has millions of numbers."""
    shape = b"\x01" * (MAX_REQUEST_BYTES - 1000)
    tensor = b"\x0a\x01a" + b"\x1a" + varint(len(shape)) + shape
    return MODEL + b"\x2a" + varint(len(tensor)) + tensor


def of_packed_numbers() -> bytes:
    """Return a message with one tensor whose packed contents have millions of numbers."""
    numbers = b"\x01" * (MAX_REQUEST_BYTES - 1000)
    contents = b"\x1a" + varint(len(numbers)) + numbers
    tensor = pb.ModelInferRequest.InferInputTensor(name="a", datatype="INT64", shape=[1]).SerializeToString()
    tensor += b"\x2a" + varint(len(contents)) + contents
    return MODEL + b"\x2a" + varint(len(tensor)) + tensor


def varint(number: int) -> bytes:
    """Return a length as a varint of five bytes."""
    return bytes([number >> 7 * place & 0x7F | 0x80 for place in range(4)]) + b"\x00"


def of_contents(contents: list[bytes], rows: int) -> bytes:
    """Return a message with one tensor with these contents."""
    head = {"name": "candidates", "datatype": "BYTES", "shape": [rows]}
    tensor = {**head, "contents": {"bytes_contents": contents}}
    return pb.ModelInferRequest(model_name="placement", inputs=[tensor]).SerializeToString()


PARAMETER = pb.ModelInferRequest.InferInputTensor(parameters={"a": {"int64_param": 1}}).SerializeToString()
INT8 = {"name": "a", "datatype": "INT8", "shape": [1], "contents": {"int_contents": [1]}}
LARGE_MESSAGES = {
    "tensors that are none": of(inputs=[{}]),
    "tensors of one name": of(inputs=[INT8]),
    "raw contents": of(raw_input_contents=[b""]),
    "outputs": of(outputs=[{}]),
    "a group before tensors": filled(MODEL + b"\x7b\x7c", NOTHING, b""),
    "parameters of a tensor": of_one_tensor(PARAMETER, name="a", datatype="INT8", shape=[1]),
    "a shape of many dimensions": of_one_tensor(b"\x18\x01", name="a", datatype="INT8"),
    "a packed shape of many dimensions": of_packed_shape(),
    "packed numbers": of_packed_numbers(),
    "empty contents": of_contents([b""] * (MAX_REQUEST_BYTES // 2 - 100), 1),
    "JSON in a few elements": of_contents(elements_of_json(), len(elements_of_json())),
    "a number without an end": b"\xff" * MAX_REQUEST_BYTES,
    "a length without an end": MODEL + b"\x2a" + b"\xff" * (MAX_REQUEST_BYTES - 100),
}


#: Messages that are also invalid, and whose parts are cheap to count.
INVALID = {
    "a packed shape of many dimensions",
    "packed numbers",
    "empty contents",
    "a number without an end",
    "a length without an end",
}


@pytest.mark.parametrize("name", LARGE_MESSAGES)
def test_a_large_grpc_message_of_many_small_parts_is_refused(name, ask):
    assert len(LARGE_MESSAGES[name]) <= MAX_REQUEST_BYTES
    assert ask.grpc(LARGE_MESSAGES[name]).status == ("invalid" if name in INVALID else "too large")


def test_a_compressed_message_is_refused(ask):
    message = pb.ModelInferRequest(raw_input_contents=[bytes(8 * MAX_REQUEST_BYTES)]).SerializeToString()
    assert ask.grpc(message, grpc.Compression.Gzip).status == "not implemented"


def test_large_requests_do_not_grow_the_memory(ask, transformer_process):
    def ask_all() -> int:
        for path, body, headers in LARGE.values():
            ask.rest(path, body, headers)
        for message in LARGE_MESSAGES.values():
            ask.grpc(message)
        return psutil.Process(transformer_process.pid).memory_info().rss

    ask_all()
    before = ask_all()
    # A leak of one kind of request would grow by more. The allocator keeps and frees some memory in between.
    after = [ask_all() for _ in range(5)]
    assert after[-1] - before < 4 * MAX_REQUEST_BYTES
    # The peak over all requests so far. The container of the InferenceService has 1 GiB.
    assert peak_bytes(transformer_process.pid) < 2**29


def test_refused_messages_are_freed_at_once(ask, transformer_process):
    """Each refused message once kept 20 MB until the next garbage collection."""

    def refused_often() -> int:
        for _ in range(10):
            for message in LONG:
                assert ask.grpc(message).status in {"invalid", "not found"}
        return psutil.Process(transformer_process.pid).memory_info().rss

    before = refused_often()
    assert refused_often() - before < 5 * MAX_REQUEST_BYTES


LONG = [
    pb.ModelInferRequest(model_name="placement", id="x" * (MAX_REQUEST_BYTES - 1000)).SerializeToString(),
    pb.ModelInferRequest(model_name="x" * (MAX_REQUEST_BYTES - 1000)).SerializeToString(),
]


def peak_bytes(pid: int) -> int:
    """Return the peak memory of a process."""
    (line,) = (one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
