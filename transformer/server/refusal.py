"""An error that a client's connection sends itself, before the application sees the request."""

from http import HTTPStatus

import httptools
import orjson

from transformer.errors import RETRY_AFTER_S
from transformer.server.uvicorn_internals import STATUS_LINE


class Refusal(Exception):
    """A request that is not read to its end. Nothing more is read on its connection.

    Parameters
    ----------
    limit
        Name of the limit that it exceeds, if there is one, for the metrics.
    """

    def __init__(self, status: HTTPStatus, text: str, *, limit: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.limit = limit

    def response(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Return the connection's last response, with KServe's body for errors.

        Parameters
        ----------
        headers
            Headers of every response of the server.
        """
        body = orjson.dumps({"error": str(self)})
        own = [
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
            (b"connection", b"close"),
        ]
        if self.status is HTTPStatus.SERVICE_UNAVAILABLE:
            own.append((b"retry-after", b"%d" % RETRY_AFTER_S))
        lines = [b"%s: %s\r\n" % header for header in (*headers, *own)]
        return b"".join([STATUS_LINE[self.status], *lines, b"\r\n", body])


def refusal_of(error: httptools.HttpParserError) -> Refusal:
    """Return the refusal that a callback raised, or one for a request that the parser cannot read."""
    # The parser wraps what its callbacks raise.
    cause = error.__context__
    if isinstance(cause, Refusal):
        # Without its traceback, whose frames refer to the connection.
        return cause.with_traceback(None)
    return Refusal(HTTPStatus.BAD_REQUEST, "the request is not HTTP/1.1")
