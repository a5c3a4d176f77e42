"""A client's connection: uvicorn's, with limits on what it may send and on how long it may take."""

import asyncio
from collections.abc import Callable, Coroutine, MutableMapping
from http import HTTPStatus
from typing import Any, Literal, NoReturn, TypeVar

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from transformer.server.client_timeouts import MIN_PROGRESS, ClientTimeouts, ProgressTimer, Waits
from transformer.server.client_transport import CoalescingTransport, PipelineFlowControl

T = TypeVar("T")

#: ASGI extension under which a request finds its connection.
CONNECTION = "transformer.connection"
#: Bytes of a request's head, trailers included, and of all that comes without getting a request further.
MAX_HEAD = 64 * 2**10
#: Headers of a request.
MAX_HEADERS = 1000
#: Requests that may wait behind the one that is being answered; each takes about 3 KB.
MAX_PIPELINED = 1000
#: Seconds in which the next request of an idle client is the last one here, when the server is being stopped.
LAST_REQUEST_S = 1.0

#: Headers that say how long a body is.
_LENGTHS = {b"content-length", b"transfer-encoding"}


class ClientConnection(HttpToolsProtocol):
    """uvicorn's protocol over a transport that sends the head of an answer together with its body.

    uvicorn lets a request go on whose client has gone; here it can be given up. uvicorn waits for ever for a
    client that does not send on, or does not read, and keeps whatever head it sends; here a timer ends the
    one, and a limit the other. uvicorn loses the body behind an offer of another protocol; here it is read.
    An error that answers what could not be read comes when all that was read before it has been answered.

    Relies on what uvicorn 0.54 does inside: `cycle` is the request that was read last, `pipeline` those that
    wait, the newest at its left, `_start_asgi_task` begins to answer one.

    Parameters
    ----------
    *args, **kwargs
        As `HttpToolsProtocol`.
    watch
        Asks from time to time what the client keeps us waiting for.
    stopping
        Tells whether the server is being stopped.
    """

    #: Whether nobody waits any more for the answer that is under way.
    lost = False
    _task: asyncio.Task[object] | None = None
    #: The request that is being answered, while others that were sent behind it may be read already.
    _answering: RequestResponseCycle | None = None
    url = b""
    #: Which part of a request is being read, and how many have begun.
    _part: Literal["nothing", "head", "body"] = "nothing"
    _begun = 0
    #: Whether the head is one of ours.
    _resuming = False
    #: Bytes that came, and how many those were when they last got a request further.
    _received = 0
    _of_use = 0
    #: Whether a head that ends now is not too large for sure.
    _fits = True
    #: Why no more is parsed, and the error that says so: empty where none can be sent.
    _over: tuple[HTTPStatus, str] | None = None
    _refusal: bytes | None = None
    _refused = False
    #: Whether the server is being stopped.
    _stopping = False

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 (uvicorn's own)
        watch: ClientTimeouts,
        stopping: Callable[[], bool] = lambda: False,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*args, **kwargs)
        self._watch = watch
        self._patience = ProgressTimer()
        self._is_stopping = stopping

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        self._out = CoalescingTransport(transport, self.loop)
        super().connection_made(self._out)  # type: ignore[arg-type]
        self.flow = PipelineFlowControl(transport, self.pipeline)
        self._watch.begin(self.loop, self.connections)
        if self._is_stopping():
            # It was accepted before, and uvicorn has told all others already.
            self.shutdown()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._refusal is not None:
            return
        self._unset_keepalive_if_required()
        self._received += len(data)
        self._fits = self._part != "head" and len(data) <= MAX_HEAD
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._read_behind(upgrade, data)
        except httptools.HttpParserError:
            self._refuse(*(self._over or (HTTPStatus.BAD_REQUEST, "the request is not HTTP/1.1")))
        else:
            if self._received - self._of_use > MAX_HEAD:
                self._refuse(*self._head_too_large())

    def _read_behind(self, upgrade: httptools.HttpParserUpgrade | None, data: bytes) -> None:
        """Read what comes behind heads that offer another protocol."""
        while upgrade is not None:
            self._stay_with_http()
            data, upgrade = data[upgrade.args[0] :], None
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as another:
                upgrade = another

    def _should_upgrade(self) -> bool:
        # Nothing here speaks websockets, and uvicorn would refuse one before it answers what came before.
        return False

    def _stay_with_http(self) -> None:
        """Read on behind a head that offers another protocol, as Java's client does with its first request.

        The parser ends there, and would take the body for that protocol. Another one goes on with a head that
        says no more than how long the body is.
        """
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        lengths = [b"%s: %s\r\n" % header for header in self.headers if header[0] in _LENGTHS]
        self._resuming = True
        try:
            self.parser.feed_data(b"".join([b"POST / HTTP/1.1\r\n", *lengths, b"\r\n"]))
        finally:
            self._resuming = False

    # What the parser finds.

    def on_message_begin(self) -> None:
        """Begin a request; see `httptools.HttpRequestParser`."""
        if len(self.pipeline) >= MAX_PIPELINED:
            self._stop(
                HTTPStatus.TOO_MANY_REQUESTS, f"{MAX_PIPELINED} requests wait on this connection already"
            )
        self._part = "head"
        self._begun += 1
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: self}  # type: ignore[dict-item]

    def on_headers_complete(self) -> None:
        """Begin to answer, or let it wait."""
        if len(self.headers) > MAX_HEADERS or not (self._fits or self._head_bytes() <= MAX_HEAD):
            self._stop(*self._head_too_large())
        if not self._resuming:
            super().on_headers_complete()
        # What stands behind the body is no header, and nobody asks for it.
        self.headers = self.headers.copy()
        self._part = "body"
        self._of_use = self._received

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        super().on_body(body)
        self._of_use = self._received

    def on_message_complete(self) -> None:
        """End a request."""
        if self.parser.should_upgrade():
            # Its body comes yet.
            return
        super().on_message_complete()
        self._part = "nothing"
        self._of_use = self._received

    def _stop(self, status: HTTPStatus, text: str) -> NoReturn:
        self._over = status, text
        # The parser ends with it.
        raise ValueError(text)

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _head_too_large(self) -> tuple[HTTPStatus, str]:
        if len(self.url) > MAX_HEAD // 2:
            return HTTPStatus.REQUEST_URI_TOO_LONG, f"a request's path may not have {len(self.url)} bytes"
        return (
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"a request's head may have {MAX_HEADERS} headers and {MAX_HEAD} bytes",
        )

    # What is answered.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401 (uvicorn's own)
        self._answering = cycle
        if self._stopping and not self.pipeline:
            cycle.keep_alive = False
        super()._start_asgi_task(cycle, app)

    def shutdown(self) -> None:
        """Let the request that is under way, or comes in a moment, be the last one of this connection.

        uvicorn would close an idle connection at once, also on a request that is just coming in.
        """
        self._stopping = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(LAST_REQUEST_S, super().shutdown)
        else:
            super().shutdown()

    def on_response_complete(self) -> None:
        """Go on with the next request."""
        super().on_response_complete()
        if self._refusal is not None:
            self._refuse_in_turn()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        if self._answering is not None and not self._answering.response_complete:
            # uvicorn marks the last one only, and takes the absence of this one's answer for an error.
            self._answering.disconnected = True
        self._give_up()

    async def needed(self, answer: Coroutine[Any, Any, T]) -> T:
        """Wait for an answer, and give it up when nobody waits for it.

        Raises
        ------
        ConnectionResetError
            When the connection is lost, or the request will not be complete.
        """
        if self.lost:
            answer.close()
            raise ConnectionResetError
        task = self._task = asyncio.current_task(self.loop)
        try:
            return await answer
        except asyncio.CancelledError as error:
            if self.lost:
                raise ConnectionResetError from error
            raise
        finally:
            if self._task is task:
                self._task = None

    def _give_up(self) -> None:
        self.lost = True
        if self._task is not None:
            self._task.cancel()

    @property
    def _all_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete or self.cycle.disconnected

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        """Read no further request, and answer the one that was being read with an error, in its turn."""
        self._refusal = _error(status, text, self.server_state.default_headers)
        if self._part == "body":
            self._forget()
        self._refuse_in_turn()

    def _forget(self) -> None:
        """Let go of the request whose body was being read, whatever has become of it."""
        cycle = self.cycle
        if self.pipeline:
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else self._answering  # type: ignore[assignment]
            return
        if cycle.response_started:
            self._refusal = b""
        cycle.disconnected = True
        cycle.message_event.set()
        self._give_up()

    def _refuse_in_turn(self) -> None:
        if not self._all_answered or self._refused or self.transport.is_closing():
            return
        assert self._refusal is not None  # noqa: S101 (or there would be nothing to refuse)
        self._refused = True
        self._unset_keepalive_if_required()
        self.transport.write(self._refusal)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        # To close on bytes that nobody has read would reset the connection, and take the answer away.
        self.flow.resume_reading()

    # What the client keeps us waiting for.

    def look(self, timeout_s: float) -> None:
        """See what the client keeps us waiting for, and end that when it has been for too long."""
        waits, progress = self._waits_for()
        if waits == "request" and self.cycle is not None and self.timeout_keep_alive_task is None:
            # Blank lines, which may stand in front of a request, have ended what uvicorn began.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        if self._patience.is_over(waits, self._begun, progress):
            self._end(waits, timeout_s)

    def _waits_for(self) -> tuple[Waits, int]:
        """What we wait for, and how many bytes of it have come or gone."""
        unread = self.transport.get_write_buffer_size()
        if unread:
            return "reader", self._out.written - unread
        if self.transport.is_closing():
            return "nothing", 0
        if self._refused:
            return "end", 0
        if not self._all_answered:
            # Nothing is read of a request that waits for its turn.
            held_up = self.flow.read_paused or self.cycle.waiting_for_100_continue
            if self._part == "body" and not held_up:
                return "body", self._received
            return "nothing", 0
        waits: dict[str, Waits] = {"nothing": "request", "head": "head", "body": "rest"}
        return waits[self._part], 0

    def _end(self, waits: Waits, timeout_s: float) -> None:
        if waits == "head":
            self._refuse(
                HTTPStatus.REQUEST_TIMEOUT, f"the request's head did not come within {timeout_s:g} s"
            )
        elif waits == "body":
            self._refuse(
                HTTPStatus.REQUEST_TIMEOUT,
                f"of the request's body not even {MIN_PROGRESS} bytes came within {timeout_s:g} s",
            )
        elif waits == "reader":
            self.transport.abort()
        elif waits in {"rest", "end"} or (waits == "request" and self.cycle is None):
            self.transport.close()


async def while_needed(scope: MutableMapping[str, Any], answering: Coroutine[Any, Any, None]) -> None:
    """Answer a request, and give that up without a word when nobody waits for it any more."""
    connection: ClientConnection | None = scope.get("extensions", {}).get(CONNECTION)
    if connection is None:
        await answering
        return
    try:
        await connection.needed(answering)
    except ConnectionResetError:
        if not connection.lost:
            raise


def _error(status: HTTPStatus, text: str, headers: list[tuple[bytes, bytes]]) -> bytes:
    """An answer that is the connection's last, with KServe's body for errors."""
    body = orjson.dumps({"error": text})
    own = [
        (b"content-length", b"%d" % len(body)),
        (b"content-type", b"application/json"),
        (b"connection", b"close"),
    ]
    lines = [b"%s: %s\r\n" % header for header in (*headers, *own)]
    return b"".join([STATUS_LINE[status], *lines, b"\r\n", body])
