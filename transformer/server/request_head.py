"""Rules of HTTP/1.1 (RFC 9112) for a request's head that the parser does not enforce.

A gateway may read a lenient head in another way than this server, and pass on what it would refuse.
"""

import re
import urllib.parse
from collections.abc import Sequence
from http import HTTPStatus

import httptools

from transformer.errors import quoted
from transformer.server.refusal import Refusal

_Headers = Sequence[tuple[bytes, bytes]]

#: Optional host and optional port, as in RFC 3986.
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]*)(?::[0-9]*)?")
_ENCODED_SLASH = re.compile(r"%(?=2[fF])")


class HeaderDict(dict[bytes, bytes]):
    """The last value of each header. Its text has no values, because uvicorn can log a request's scope."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} headers>"


class HeadRules:
    """Checks the heads of one connection's requests.

    A client repeats its target and its Host, so these are checked once until they change.
    """

    def __init__(self) -> None:
        self._target = b""
        self._method = b""
        self._host: bytes | None = None

    def check(self, version: str, method: bytes, target: bytes, headers: _Headers) -> HeaderDict:
        """Check a head, whose header names are in lower case; return the last value of each header.

        Raises
        ------
        Refusal
            If it breaks a rule.
        """
        by_name = HeaderDict(headers)
        host = by_name.get(b"host")
        if (
            host != self._host
            or host is None
            or version != "1.1"
            or b"transfer-encoding" in by_name
            or len(by_name) < len(headers)
        ):
            _check_version(version)
            _check_transfer_encoding(version, headers)
            _check_host(version, headers)
            self._host = host
        if target != self._target or method != self._method:
            _check_target(method, target)
            self._target, self._method = target, method
        return by_name


def decoded_path(raw_path: bytes) -> str:
    """Return a percent-decoded path. Encoded slashes stay encoded, because they separate no segments."""
    return urllib.parse.unquote(_ENCODED_SLASH.sub("%25", raw_path.decode("ascii")))


def _check_version(version: str) -> None:
    if version not in {"1.0", "1.1"}:
        raise Refusal(
            HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, f"HTTP version: must be 1.1 or 1.0, got {version}"
        )


def _check_transfer_encoding(version: str, headers: _Headers) -> None:
    values = [value for name, value in headers if name == b"transfer-encoding"]
    if not values:
        return
    if version == "1.0":
        raise Refusal(HTTPStatus.BAD_REQUEST, "transfer-encoding: HTTP/1.0 has none; use HTTP/1.1")
    text = b", ".join(values).decode("latin-1")
    codings = [coding.strip(" \t").lower() for coding in text.split(",")]
    if codings == ["chunked"]:
        return
    # The end of a body is unknown unless chunked is the last coding.
    status = HTTPStatus.NOT_IMPLEMENTED if codings[-1] == "chunked" else HTTPStatus.BAD_REQUEST
    raise Refusal(status, f"transfer-encoding: must be chunked, got {quoted(text)}")


def _check_host(version: str, headers: _Headers) -> None:
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        raise Refusal(HTTPStatus.BAD_REQUEST, f"host: must be sent once, got {len(hosts)}")
    if hosts and not _HOST.fullmatch(hosts[0].strip(b" \t")):
        text = quoted(hosts[0].decode("latin-1"))
        raise Refusal(HTTPStatus.BAD_REQUEST, f"host: must be a host with an optional port, got {text}")


def _check_target(method: bytes, target: bytes) -> None:
    if method == b"CONNECT":
        raise Refusal(HTTPStatus.NOT_IMPLEMENTED, "CONNECT is not implemented: this server is no proxy")
    if b"#" not in target and (
        target.startswith(b"/") or _is_url(target) or (target == b"*" and method == b"OPTIONS")
    ):
        return
    text = quoted(target.decode("latin-1"))
    raise Refusal(
        HTTPStatus.BAD_REQUEST, f"request target: must be a path or an http URL, without fragment, got {text}"
    )


def _is_url(target: bytes) -> bool:
    """Return True for an http URL with a host, a path, and no user."""
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        return False
    return (url.schema or b"").lower() in {b"http", b"https"} and bool(url.path) and url.userinfo is None
