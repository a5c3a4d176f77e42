"""HTTP sessions to S3 that an endpoint cannot fill or block: limits on the time and size of a response.

aiobotocore limits neither: it waits for a server that sends one byte at a time, and it reads a listing or an
error of any size into memory.
"""

import errno
from typing import Any

from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.httpsession import AIOHTTPSession

#: Seconds until a connection must be open.
CONNECT_TIMEOUT_S = 5
#: Seconds without a byte after which a response has failed.
IDLE_TIMEOUT_S = 15
#: Maximum bytes of a response that is not a file: a page of a listing (1000 files have 0.5 MB), or an error.
MAX_RESPONSE_BYTES = 8 * 2**20

_CHUNK_BYTES = 2**16


class LimitedSession(AIOHTTPSession):  # type: ignore[misc]  # aiobotocore is not typed
    """A session that limits the size of responses which are read as a whole."""

    async def send(self, request: Any) -> AioAWSResponse:  # noqa: ANN401 (botocore's request)
        """Send a request. Only the content of a file is left to be read in parts."""
        streamed, request.stream_output = request.stream_output, True
        response = await super().send(request)
        limited = _LimitedResponse(response.url, response.status_code, response.headers, response.raw)
        if not streamed:
            await limited.content
        return limited


class _LimitedResponse(AioAWSResponse):  # type: ignore[misc]  # aiobotocore is not typed
    _content: bytes | None

    async def _content_prop(self) -> bytes:
        if self._content is None:
            parts = bytearray()
            while chunk := await self.raw.content.read(_CHUNK_BYTES):
                parts += chunk
                if len(parts) > MAX_RESPONSE_BYTES:
                    self.raw.close()
                    raise OSError(errno.EFBIG, f"the response is too large: limit {MAX_RESPONSE_BYTES} bytes")
            self._content = bytes(parts)
        return self._content


def client_config() -> dict[str, Any]:
    """Return the settings of botocore's client."""
    return {
        "http_session_cls": LimitedSession,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": IDLE_TIMEOUT_S,
        "retries": {"total_max_attempts": 2},
    }
