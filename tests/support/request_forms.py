"""Every form of a request that the transformer accepts, for tests that ask one in this process."""

import json
from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.in_process_transformer import InProcessTransformer
from tests.support.protocol_clients import Answer
from tests.support.request_bodies import (
    Candidates,
    binary_request,
    field_tensors,
    grpc_objects,
    grpc_tensors,
    v1_request,
    v2_objects,
)
from transformer.bundle.signature import Signature

Form = Callable[[InProcessTransformer, Candidates, Signature], Awaitable[Answer]]


async def v1(transformer: InProcessTransformer, rows: Candidates, _: Signature, **headers: str) -> Answer:
    body = json.dumps(v1_request(rows))
    response = await transformer.http.post(V1_PREDICT, content=body, headers=headers)
    assert response.status_code == 200, response.text
    return _of_v1(response.json(), response.headers["x-model-version"])


async def v1_with_charset(
    transformer: InProcessTransformer, rows: Candidates, signature: Signature
) -> Answer:
    return await v1(transformer, rows, signature, **{"content-type": "application/json; charset=utf-8"})


async def v1_inputs(transformer: InProcessTransformer, rows: Candidates, _: Signature) -> Answer:
    return await _ask_v1(transformer, json.dumps({"inputs": list(rows)}).encode())


async def v1_columns(transformer: InProcessTransformer, rows: Candidates, signature: Signature) -> Answer:
    """Send the candidates as KServe's sklearn server takes named columns: an object of lists."""
    columns = {name: [row[name] for row in rows] for name in signature.names}
    return await _ask_v1(transformer, json.dumps({"inputs": [columns]}).encode())


async def v1_lists(transformer: InProcessTransformer, rows: Candidates, _: Signature) -> Answer:
    return await _ask_v1(transformer, json.dumps({"instances": [[row] for row in rows]}).encode())


async def v1_byte_order_mark(transformer: InProcessTransformer, rows: Candidates, _: Signature) -> Answer:
    return await _ask_v1(transformer, json.dumps(v1_request(rows)).encode("utf-8-sig"))


async def v1_structured_cloudevent(
    transformer: InProcessTransformer, rows: Candidates, _: Signature
) -> Answer:
    return await _ask_event(transformer, {"time": "2026-01-01T00:00:00Z", "data": v1_request(rows)})


async def v1_cloudevent_with_charset_and_without_time(
    transformer: InProcessTransformer, rows: Candidates, _: Signature
) -> Answer:
    event = {"data": v1_request(rows), "datacontenttype": "application/json"}
    return await _ask_event(transformer, event, "Application/CloudEvents+JSON; charset=UTF-8")


async def v1_cloudevent_with_base64(
    transformer: InProcessTransformer, rows: Candidates, _: Signature
) -> Answer:
    data = b64encode(json.dumps(v1_request(rows)).encode("utf-8-sig")).decode()
    return await _ask_event(transformer, {"data_base64": data})


async def v1_binary_cloudevent(
    transformer: InProcessTransformer, rows: Candidates, _: Signature, **headers: str
) -> Answer:
    headers |= {"ce-specversion": "1.0", "ce-id": "7", "ce-source": "test", "ce-type": "candidate"}
    response = await transformer.http.post(V1_PREDICT, json=v1_request(rows), headers=headers)
    assert response.headers["ce-source"] == "io.kserve.inference.placement"
    return _of_v1(response.json(), response.headers["x-model-version"])


async def v1_binary_cloudevent_with_charset(
    transformer: InProcessTransformer, rows: Candidates, signature: Signature
) -> Answer:
    headers = {"content-type": "application/json; charset=utf-8", "ce-time": "2026-01-01T00:00:00Z"}
    return await v1_binary_cloudevent(transformer, rows, signature, **headers)


async def v2_tensor_per_field(
    transformer: InProcessTransformer, rows: Candidates, signature: Signature
) -> Answer:
    inputs = field_tensors(signature, rows)
    return await ask_v2(transformer, {"parameters": {"content_type": "pd"}, "inputs": inputs})


async def v2_nested_columns(
    transformer: InProcessTransformer, rows: Candidates, signature: Signature
) -> Answer:
    columns = [
        {**tensor, "shape": [len(rows), 1], "data": [[value] for value in tensor["data"]]}
        for tensor in field_tensors(signature, rows)
    ]
    return await ask_v2(transformer, {"inputs": columns})


async def v2_flat_columns(
    transformer: InProcessTransformer, rows: Candidates, signature: Signature
) -> Answer:
    columns = [{**tensor, "shape": [len(rows), 1]} for tensor in field_tensors(signature, rows)]
    return await ask_v2(transformer, {"inputs": columns})


async def v2_json_objects(transformer: InProcessTransformer, rows: Candidates, _: Signature) -> Answer:
    return await ask_v2(transformer, v2_objects(rows))


async def v2_byte_order_mark(transformer: InProcessTransformer, rows: Candidates, _: Signature) -> Answer:
    body = json.dumps({"id": "mine", **v2_objects(rows)}).encode("utf-8-sig")
    response = await transformer.http.post(V2_INFER, content=body)
    assert response.status_code == 200, response.text
    placed, probability = response.json()["outputs"]
    return Answer(placed["data"], probability["data"], response.json()["model_version"])


async def v2_base64(transformer: InProcessTransformer, rows: Candidates, signature: Signature) -> Answer:
    tensors = [_in_base64(tensor) for tensor in field_tensors(signature, rows)]
    return await ask_v2(transformer, {"inputs": tensors})


async def v2_objects_in_base64(transformer: InProcessTransformer, rows: Candidates, _: Signature) -> Answer:
    return await ask_v2(
        transformer, {"inputs": [_in_base64(tensor) for tensor in v2_objects(rows)["inputs"]]}
    )


async def v2_binary(transformer: InProcessTransformer, rows: Candidates, signature: Signature) -> Answer:
    body, headers = binary_request(signature, rows)
    # The length alone marks a binary request.
    del headers["content-type"]
    response = await transformer.http.post(V2_INFER, content=body, headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers["inference-header-content-length"])
    content = json.loads(response.content[:length])
    sizes = [output["parameters"]["binary_data_size"] for output in content["outputs"]]
    assert sizes == [len(rows), 8 * len(rows)]
    assert len(response.content) == length + sum(sizes)
    placed, probability = response.content[length : length + sizes[0]], response.content[length + sizes[0] :]
    return Answer(
        np.frombuffer(placed, "?").tolist(),
        np.frombuffer(probability, "<f8").tolist(),
        content["model_version"],
    )


async def grpc_typed(transformer: InProcessTransformer, rows: Candidates, signature: Signature) -> Answer:
    return await _ask_grpc(transformer, grpc_tensors(signature, rows))


async def grpc_raw(transformer: InProcessTransformer, rows: Candidates, signature: Signature) -> Answer:
    return await _ask_grpc(transformer, grpc_tensors(signature, rows, raw=True))


async def grpc_json_objects(transformer: InProcessTransformer, rows: Candidates, _: Signature) -> Answer:
    return await _ask_grpc(transformer, grpc_objects(rows))


async def grpc_base64(transformer: InProcessTransformer, rows: Candidates, _: Signature) -> Answer:
    message = grpc_objects(rows)
    (tensor,) = message.inputs
    tensor.parameters["content_type"].string_param = "base64"
    for number, value in enumerate(tensor.contents.bytes_contents):
        tensor.contents.bytes_contents[number] = b64encode(value)
    return await _ask_grpc(transformer, message)


FORMS: tuple[Form, ...] = (
    v1,
    v1_with_charset,
    v1_inputs,
    v1_columns,
    v1_lists,
    v1_byte_order_mark,
    v1_structured_cloudevent,
    v1_cloudevent_with_charset_and_without_time,
    v1_cloudevent_with_base64,
    v1_binary_cloudevent,
    v1_binary_cloudevent_with_charset,
    v2_tensor_per_field,
    v2_nested_columns,
    v2_flat_columns,
    v2_json_objects,
    v2_byte_order_mark,
    v2_base64,
    v2_objects_in_base64,
    v2_binary,
    grpc_typed,
    grpc_raw,
    grpc_json_objects,
    grpc_base64,
)


def _in_base64(tensor: dict[str, Any]) -> dict[str, Any]:
    """Return a tensor with its texts in base64, as MLServer's codec does it; another one as it is."""
    if tensor["datatype"] != "BYTES":
        return tensor
    data = [b64encode(text.encode()).decode() for text in tensor["data"]]
    return {**tensor, "parameters": {"content_type": "base64"}, "data": data}


async def _ask_v1(transformer: InProcessTransformer, body: bytes) -> Answer:
    response = await transformer.http.post(V1_PREDICT, content=body)
    assert response.status_code == 200, response.text
    return _of_v1(response.json(), response.headers["x-model-version"])


async def _ask_event(
    transformer: InProcessTransformer,
    event: dict[str, Any],
    content_type: str = "application/cloudevents+json",
) -> Answer:
    event = {"specversion": "1.0", "id": "7", "source": "test", "type": "candidate", **event}
    headers = {"content-type": content_type}
    response = await transformer.http.post(V1_PREDICT, json=event, headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/cloudevents+json"
    answer = response.json()
    assert answer["type"] == "io.kserve.inference.response"
    return _of_v1(answer["data"], response.headers["x-model-version"])


async def ask_v2(transformer: InProcessTransformer, request: dict[str, Any]) -> Answer:
    """Send a V2 request as JSON and check the form of its answer."""
    response = await transformer.http.post(V2_INFER, json={"id": "mine", **request})
    assert response.status_code == 200, response.text
    content = response.json()
    assert (content["id"], content["model_name"]) == ("mine", "placement")
    placed, probability = content["outputs"]
    assert (placed["name"], placed["datatype"]) == ("placement", "BOOL")
    assert (probability["name"], probability["datatype"]) == ("placement_probability", "FP64")
    assert placed["shape"] == probability["shape"] == [len(placed["data"])]
    assert content["model_version"] == response.headers["x-model-version"]
    return Answer(placed["data"], probability["data"], content["model_version"])


async def _ask_grpc(transformer: InProcessTransformer, message: pb.ModelInferRequest) -> Answer:
    call = transformer.grpc.ModelInfer(message)
    answer = await call
    metadata = dict(await call.trailing_metadata())
    assert metadata["x-model-version"] == answer.model_version
    assert answer.model_name == "placement"
    placed, probability = answer.outputs
    assert (placed.name, placed.datatype) == ("placement", "BOOL")
    assert (probability.name, probability.datatype) == ("placement_probability", "FP64")
    if answer.raw_output_contents:
        bools, floats = answer.raw_output_contents
        return Answer(
            np.frombuffer(bools, "?").tolist(), np.frombuffer(floats, "<f8").tolist(), answer.model_version
        )
    return Answer(
        list(placed.contents.bool_contents), list(probability.contents.fp64_contents), answer.model_version
    )


def _of_v1(content: Any, version: str) -> Answer:
    predictions = content["predictions"]
    assert all(set(one) == {"placement", "placement_probability"} for one in predictions)
    return Answer(
        [one["placement"] for one in predictions],
        [one["placement_probability"] for one in predictions],
        version,
    )
