"""Rules for request headers (gRPC: metadata): which go to the predictor, and how credentials are checked."""

import re
from collections.abc import Iterable, Mapping, Sequence

from transformer.errors import InvalidRequest

AUTHORIZATION = "authorization"
#: Response header and gRPC metadata that name the version which gave the answer.
VERSION_HEADER = "x-model-version"
#: Response header and gRPC metadata of a model's metadata: a JSON array with the names of the fields that are
#: lists. Their tensors have the datatype BYTES, like those of a category.
LIST_FIELDS_HEADER = "x-list-fields"
BAGGAGE = "baggage"
#: Headers that reach the predictor when a call serves one request, besides every ``x-b3-*``: those of W3C, of
#: B3 in a single header, and those of vendors (Istio's and Envoy's documentation list them).
_FORWARDED = frozenset(
    {
        AUTHORIZATION,
        BAGGAGE,
        "b3",
        "sw8",
        "traceparent",
        "tracestate",
        "uber-trace-id",
        "x-amzn-trace-id",
        "x-client-trace-id",
        "x-cloud-trace-context",
        "x-datadog-origin",
        "x-datadog-parent-id",
        "x-datadog-sampling-priority",
        "x-datadog-tags",
        "x-datadog-trace-id",
        "x-ot-span-context",
        "x-request-id",
    }
)
_FORWARDED_BYTES = frozenset(name.encode() for name in _FORWARDED)
#: Names of B3 tracing that are valid in HTTP and in gRPC, which expects bytes in names that end in -bin.
_B3 = re.compile(r"x-b3-(?!.*-bin$)[0-9a-z_.-]+")
#: Headers that every call to the predictor has anyway, or that describe its body or the connection.
_RESERVED = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "host",
        "te",
        "transfer-encoding",
        "upgrade",
    }
)
#: A header that HTTP and gRPC can carry alike; gRPC expects bytes in names that end in -bin.
_HEADER = re.compile(r"(?P<name>(?!grpc-)[0-9a-z_.-]+(?<!-bin))\s*:\s*(?P<value>[!-~](?:[ -~]*[!-~])?)\s*")
#: Maximum characters of all tracing headers together, names included. gRPC limits metadata to 8 KiB.
MAX_TRACING = 2048
#: Maximum characters of credentials that gRPC can carry beside the tracing headers.
MAX_CREDENTIALS = 4096


def forwarded(headers: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the headers of a request that go to the predictor, names in lower case.

    Tracing headers that are too large are left out, baggage first: the predictor would refuse the call.

    Raises
    ------
    InvalidRequest
        If credentials are sent twice: an ingress may have checked others than the predictor would get.
    """
    some: dict[str, str] = {}
    for key, value in headers:
        name = key.lower()
        if name not in _FORWARDED and not _B3.fullmatch(name):
            continue
        if name == AUTHORIZATION and name in some:
            count = sum(other.lower() == AUTHORIZATION for other, _ in headers)
            raise InvalidRequest(f"{AUTHORIZATION}: must be sent once, got {count}")
        some[name] = value
    if not _is_too_large(some):
        return some
    some.pop(BAGGAGE, None)
    if _is_too_large(some):
        return {name: value for name, value in some.items() if name == AUTHORIZATION}
    return some


def _is_too_large(headers: Mapping[str, str]) -> bool:
    return (
        sum(len(name) + len(value) for name, value in headers.items() if name != AUTHORIZATION) > MAX_TRACING
    )


def forwardable(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """Return those headers of an ASGI scope, whose names are in lower case, that `forwarded` looks at."""
    some = [pair for pair in headers if pair[0] in _FORWARDED_BYTES or pair[0].startswith(b"x-b3-")]
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in some]


def grpc_metadata(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return forwarded headers as gRPC metadata. Values that are not printable ASCII are left out."""
    return tuple((name, value) for name, value in headers.items() if _is_metadata(value))


def check_credentials(headers: Mapping[str, str]) -> None:
    """Check that gRPC can carry a request's credentials to the predictor, because they are never left out.

    Raises
    ------
    InvalidRequest
        If it cannot.
    """
    credentials = headers.get(AUTHORIZATION, "")
    if not _is_metadata(credentials) or len(credentials) > MAX_CREDENTIALS:
        raise InvalidRequest(
            f"{AUTHORIZATION}: must be printable ASCII, to go to the predictor over gRPC; limit "
            f"{MAX_CREDENTIALS} characters, got {len(credentials)}"
        )


def predictor_header(text: str) -> tuple[str, str]:
    """Read a header for every call to the predictor from ``name:value``; the name is in lower case then.

    Raises
    ------
    ValueError
        If HTTP or gRPC cannot carry it, or if calls have a header of this name already.
    """
    name, colon, value = text.partition(":")
    found = _HEADER.fullmatch(name.lower() + colon + value)
    if found is None:
        raise ValueError(f"must be name:value in ASCII, such as seldon-model:placement, got {text!r}")
    if found["name"] in _RESERVED | _FORWARDED or _B3.fullmatch(found["name"]):
        raise ValueError(f"{found['name']}: the transformer sets or forwards it itself, expected another")
    return found["name"], found["value"]


def _is_metadata(value: str) -> bool:
    return value.isascii() and value.isprintable()
