"""The V2 inference protocol over gRPC: protobuf messages to requests, answers to messages."""

import uuid

import numpy as np
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from transformer.errors import InvalidRequest
from transformer.protocols.tensors import Tensor, check_heads, from_raw, from_values, to_candidates
from transformer.protocols.v2 import V2Answer, V2Request, raw_bytes, requested_outputs

#: Field of `InferTensorContents` that holds each datatype's values; FP16 has none.
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
    message: pb.ModelInferRequest, *, output_name: str, fields: tuple[str, ...], max_candidates: int
) -> V2Request:
    """Read a ``ModelInferRequest`` with typed or with raw contents.

    Parameters are those of `transformer.protocols.v2.decode`. The answer is raw where the request was.

    Raises
    ------
    InvalidRequest
        If the tensors are not a request for this model.
    TooLarge
        If there are more than `max_candidates`.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequest(
            f"raw_input_contents: must be one for each of {len(message.inputs)}, got {len(raw)}"
        )
    # Of a shape of millions of dimensions, no more than an error shows.
    heads = ((tensor.name, tensor.datatype, tensor.shape[:9]) for tensor in message.inputs)
    check_heads(heads, fields, max_candidates)
    tensors = [
        _raw(tensor, raw[number]) if raw else _typed(tensor) for number, tensor in enumerate(message.inputs)
    ]
    wanted = {output.name: bool(raw) for output in message.outputs}
    return V2Request(
        id=message.id or str(uuid.uuid4()),
        model_name=message.model_name,
        version=message.model_version or None,
        output_name=output_name,
        candidates=to_candidates(tensors, fields),
        outputs=requested_outputs(output_name, wanted),
        binary=bool(raw),
    )


def _raw(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes) -> Tensor:
    if tensor.HasField("contents"):
        raise InvalidRequest(f"inputs.{tensor.name}: must have contents or raw_input_contents, not both")
    return from_raw(tensor.name, tensor.datatype, list(tensor.shape), raw)


def _typed(tensor: pb.ModelInferRequest.InferInputTensor) -> Tensor:
    name, datatype = tensor.name, tensor.datatype
    filled = [(field.name, values) for field, values in tensor.contents.ListFields()]
    expected = CONTENTS.get(datatype)
    if filled and [field for field, _ in filled] != [expected]:
        raise InvalidRequest(
            f"inputs.{name}: must carry {datatype!r} "
            f"in {expected or 'raw_input_contents'}, got {', '.join(field for field, _ in filled)}"
        )
    return from_values(name, datatype, list(tensor.shape), filled[0][1] if filled else [])


def encode(answer: V2Answer) -> pb.ModelInferResponse:
    """A ``ModelInferResponse``; raw contents for all outputs or for none, as the protocol wants it."""
    message = pb.ModelInferResponse(
        id=answer.id, model_name=answer.model_name, model_version=answer.model_version
    )
    for output in answer.outputs:
        tensor = message.outputs.add(name=output.name, datatype=output.datatype, shape=[len(output.values)])
        if output.binary:
            message.raw_output_contents.append(raw_bytes(output.values))
        else:
            getattr(tensor.contents, CONTENTS[output.datatype]).extend(np.asarray(output.values).tolist())
    return message
