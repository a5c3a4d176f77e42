"""Rules for a request's headers: which are forwarded to the predictor, and how credentials are checked."""

import re
from collections.abc import Iterable, Mapping

from transformer.errors import InvalidRequest

#: Request headers that reach the predictor when a call serves one request, beside every ``x-b3-*``.
AUTHORIZATION = "authorization"


_FORWARDED = frozenset({AUTHORIZATION, "x-request-id", "traceparent", "tracestate"})


_FORWARDED_BYTES = frozenset(name.encode() for name in _FORWARDED)


#: Characters of all tracing headers together, names included; more are left behind. gRPC takes 8 KiB in all.
MAX_TRACING = 2048


#: Characters of credentials that go over gRPC.
MAX_CREDENTIALS = 4096


# Names that are headers and metadata alike: what ends in -bin has bytes in gRPC.
_B3 = re.compile(r"x-b3-(?!.*-bin$)[0-9a-z_.-]+")


def forwarded(headers: Mapping[str, str]) -> dict[str, str]:
    """Those of a request's headers (or gRPC metadata) that go on to the predictor.

    Tracing that is too large is left out: a predictor would refuse the call, and nobody else's may suffer.
    """
    some = {
        name: value
        for name, value in ((key.lower(), value) for key, value in headers.items())
        if name in _FORWARDED or _B3.fullmatch(name)
    }
    tracing = sum(len(name) + len(value) for name, value in some.items() if name != AUTHORIZATION)
    if tracing > MAX_TRACING:
        return {name: value for name, value in some.items() if name == AUTHORIZATION}
    return some


def forwarded_of(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The same of an ASGI scope's headers, whose names are in lower case."""
    some = [pair for pair in headers if pair[0] in _FORWARDED_BYTES or pair[0].startswith(b"x-b3-")]
    return forwarded({name.decode("latin-1"): value.decode("latin-1") for name, value in some})


def metadata(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Forwarded headers as gRPC metadata, whose values must be printable ASCII; others stay behind."""
    return tuple((name, value) for name, value in headers.items() if _is_metadata(value))


def check_sent_once(names: Iterable[str]) -> None:
    """See that a request names its credentials once: an ingress may have looked at others than go on.

    Raises
    ------
    InvalidRequest
        If it does not.
    """
    if sum(name == AUTHORIZATION for name in names) > 1:
        raise InvalidRequest(f"{AUTHORIZATION}: must be sent once")


def check_credentials(headers: Mapping[str, str]) -> None:
    """See that gRPC can carry a request's credentials to the predictor: they are never left out.

    Raises
    ------
    InvalidRequest
        If it cannot.
    """
    credentials = headers.get(AUTHORIZATION, "")
    if not _is_metadata(credentials) or len(credentials) > MAX_CREDENTIALS:
        raise InvalidRequest(
            f"{AUTHORIZATION}: must be printable ASCII of {MAX_CREDENTIALS} characters at most, "
            "to go to the predictor over gRPC"
        )


def _is_metadata(value: str) -> bool:
    return value.isascii() and value.isprintable()
