"""Rules for a request's headers: which go to the predictor, and limits on credentials."""

import re
from collections.abc import Iterable, Mapping

from transformer.errors import InvalidRequest

AUTHORIZATION = "authorization"
#: Request headers that go to the predictor if a call serves one request, besides every ``x-b3-*``.
_FORWARDED = frozenset({AUTHORIZATION, "x-request-id", "traceparent", "tracestate"})
_FORWARDED_BYTES = frozenset(name.encode() for name in _FORWARDED)
#: Maximum characters of all tracing headers together, names included. gRPC accepts 8 KiB of metadata in all.
MAX_TRACING = 2048
#: Maximum characters of credentials over gRPC.
MAX_CREDENTIALS = 4096
# Names that are valid as a header and as gRPC metadata, where a name that ends in -bin has bytes.
_B3 = re.compile(r"x-b3-(?!.*-bin$)[0-9a-z_.-]+")


def forwarded_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers (or gRPC metadata) of a request that go to the predictor.

    Tracing headers over the limit are dropped: the predictor would refuse the call, and with it other
    callers' requests.
    """
    forwarded = {
        name: value
        for name, value in ((key.lower(), value) for key, value in headers.items())
        if name in _FORWARDED or _B3.fullmatch(name)
    }
    tracing = sum(len(name) + len(value) for name, value in forwarded.items() if name != AUTHORIZATION)
    if tracing > MAX_TRACING:
        return {name: value for name, value in forwarded.items() if name == AUTHORIZATION}
    return forwarded


def forwarded_scope_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the same of an ASGI scope's headers, whose names are in lower case."""
    some = [pair for pair in headers if pair[0] in _FORWARDED_BYTES or pair[0].startswith(b"x-b3-")]
    return forwarded_headers({name.decode("latin-1"): value.decode("latin-1") for name, value in some})


def grpc_metadata(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return forwarded headers as gRPC metadata, without values that are not printable ASCII."""
    return tuple((name, value) for name, value in headers.items() if _is_metadata(value))


def check_sent_once(names: Iterable[str]) -> None:
    """Check that a request has at most one `authorization` header.

    An ingress may have checked another one than the predictor would get.

    Raises
    ------
    InvalidRequest
        If there are several.
    """
    count = sum(name == AUTHORIZATION for name in names)
    if count > 1:
        raise InvalidRequest(f"{AUTHORIZATION}: must be sent once, got {count}")


def check_credentials(headers: Mapping[str, str]) -> None:
    """Check that gRPC can carry a request's credentials, which are never dropped.

    Raises
    ------
    InvalidRequest
        If it cannot.
    """
    credentials = headers.get(AUTHORIZATION, "")
    if not _is_metadata(credentials) or len(credentials) > MAX_CREDENTIALS:
        raise InvalidRequest(
            f"{AUTHORIZATION}: must be printable ASCII of at most {MAX_CREDENTIALS} characters, "
            "because it goes to the predictor over gRPC"
        )


def _is_metadata(value: str) -> bool:
    return value.isascii() and value.isprintable()
