"""The V2 inference protocol over gRPC: decoding of request messages, encoding of response messages."""

from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from transformer.bundle.signature import DEFAULT_ROW_NAME
from transformer.errors import InvalidRequest
from transformer.protocols.tensors import (
    BASE64,
    Tensor,
    check_metadata,
    check_number_of_tensors,
    from_base64,
    from_raw,
    from_values,
    to_candidates,
)
from transformer.protocols.v2 import V2Request, V2Response, check_outputs, raw_bytes, request_id

#: Field of `InferTensorContents` for each datatype; FP16 has none.
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def decode(
    message: pb.ModelInferRequest,
    *,
    output_name: str,
    fields: tuple[str, ...],
    max_candidates: int,
    row_name: str = DEFAULT_ROW_NAME,
) -> V2Request:
    """Decode a ``ModelInferRequest`` with typed or raw contents.

    Parameters as in `transformer.protocols.v2.decode`. The response to raw contents has raw contents.

    Raises
    ------
    InvalidRequest
        If the tensors are not a valid request for this model.
    TooLarge
        If there are more than `max_candidates`.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequest(
            f"raw_input_contents: must be one per input, {len(message.inputs)}, got {len(raw)}"
        )
    # A shape may have millions of dimensions; an error shows eight.
    metadata = ((tensor.name, tensor.datatype, tensor.shape[:9]) for tensor in message.inputs)
    check_number_of_tensors(len(message.inputs), fields)
    ignored = check_metadata(metadata, fields, max_candidates, row_name)
    tensors = []
    for number, sent in enumerate(message.inputs):
        skip = sent.name in ignored
        tensor = _raw_tensor(sent, raw[number], ignored=skip) if raw else _typed_tensor(sent, ignored=skip)
        in_base64 = sent.parameters and sent.parameters["content_type"].string_param == BASE64
        tensors.append(from_base64(tensor) if in_base64 else tensor)
    requested = {output.name: bool(raw) for output in message.outputs}
    return V2Request(
        id=request_id(message.id),
        model_name=message.model_name,
        version=message.model_version or None,
        output_name=output_name,
        candidates=to_candidates(tensors, fields),
        outputs=check_outputs(output_name, requested),
        binary=bool(raw),
    )


def _raw_tensor(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes, *, ignored: bool) -> Tensor:
    if tensor.HasField("contents"):
        raise InvalidRequest(f"inputs.{tensor.name}: must have contents or raw_input_contents, not both")
    return from_raw(tensor.name, tensor.datatype, list(tensor.shape), raw, ignored=ignored)


def _typed_tensor(tensor: pb.ModelInferRequest.InferInputTensor, *, ignored: bool) -> Tensor:
    name, datatype = tensor.name, tensor.datatype
    contents = {field.name: values for field, values in tensor.contents.ListFields()}
    expected = CONTENTS.get(datatype, "raw_input_contents")
    if contents and list(contents) != [expected]:
        raise InvalidRequest(
            f"inputs.{name}: must have {datatype} values in {expected}, got {', '.join(contents)}"
        )
    return from_values(name, datatype, list(tensor.shape), contents.get(expected, []), ignored=ignored)


def encode(response: V2Response) -> pb.ModelInferResponse:
    """Encode a ``ModelInferResponse``. The protocol requires raw contents for all outputs or for none."""
    message = pb.ModelInferResponse(
        id=response.id, model_name=response.model_name, model_version=response.model_version
    )
    for output in response.outputs:
        tensor = message.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        for name, text in output.parameters.items():
            tensor.parameters[name].string_param = text
        if output.binary:
            message.raw_output_contents.append(raw_bytes(output.values))
        elif isinstance(output.values, list):
            tensor.contents.bytes_contents.extend(value.encode() for value in output.values)
        else:
            getattr(tensor.contents, CONTENTS[output.datatype]).extend(output.values.ravel().tolist())
    return message
