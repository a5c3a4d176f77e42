"""A kind of traced requests or calls, in the words of OpenTelemetry's conventions for HTTP and gRPC."""

from collections.abc import Mapping
from typing import NamedTuple, Self

#: Attributes of a span. None holds a candidate's value.
Attributes = Mapping[str, str | int]
#: The inference method, in the form that spans have it.
_MODEL_INFER = "inference.GRPCInferenceService/ModelInfer"


class Operation(NamedTuple):
    """The name of an operation's spans, and the attributes that all of them have."""

    name: str
    attributes: Attributes
    grpc: bool = False

    @classmethod
    def of_http(cls, path: str, attributes: Attributes) -> Self:
        """Return a POST to a path, or to a route."""
        return cls(f"POST {path}", {"http.request.method": "POST", **attributes})

    @classmethod
    def of_grpc(cls, attributes: Attributes) -> Self:
        """Return a call of the inference method."""
        own = {"rpc.system.name": "grpc", "rpc.method": _MODEL_INFER}
        return cls(_MODEL_INFER, {**own, **attributes}, grpc=True)
