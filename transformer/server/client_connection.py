"""A client's connection: uvicorn's protocol, with limits on what a client sends and how long it takes."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, TypeVar

import httptools

from transformer.errors import QueueFull
from transformer.metrics import REFUSALS
from transformer.server.client_limit import MAX_PIPELINED, ClientLimit
from transformer.server.client_timeouts import (
    CONNECTION_AGE_S,
    MIN_PROGRESS,
    ClientTimeouts,
    ProgressTimer,
    WaitsFor,
)
from transformer.server.client_transport import CoalescingTransport, PipelineFlowControl
from transformer.server.connection_state import WAITS_FOR, Cancellable, ReadProgress, State
from transformer.server.refusal import Refusal, refusal_of
from transformer.server.request_head import HeaderDict, HeadRules, decoded_path
from transformer.server.unfinished_bodies import UnfinishedBodies, UnfinishedBody
from transformer.server.unread_responses import MAX_UNCOUNTED
from transformer.server.uvicorn_internals import HttpToolsProtocol, RequestResponseCycle

T = TypeVar("T")

#: ASGI extension under which a request finds its connection.
CONNECTION = "transformer.connection"
#: Maximum bytes of a request's head, including trailers, and of anything that makes no progress.
MAX_HEAD = 64 * 2**10
#: Maximum headers of a request.
MAX_HEADERS = 1000
#: Seconds in which an idle client may send one last request during a shutdown.
LAST_REQUEST_S = 1.0

#: Headers that announce a body's length.
_LENGTHS = {b"content-length", b"transfer-encoding"}


class ClientConnection(HttpToolsProtocol):
    """One client's connection, in one `State` at a time.

    It differs from uvicorn's protocol in these points:

    - A request whose client has gone can be cancelled.
    - It ends with a response once it has reached `CONNECTION_AGE_S`, or the server is leaving.
    - Slow clients are disconnected; heads, unfinished bodies and the number of connections are limited.
    - Heads that break rules of HTTP/1.1 are refused, and an encoded slash separates no segments of a path.
    - A body behind an offer to upgrade to another protocol is read.
    - An error about an unreadable request is sent after the responses to all requests before it.
    - The head and the body of a small response are written together.

    Parameters
    ----------
    *args, **kwargs
        As `HttpToolsProtocol`.
    timeouts
        Checks the connection's progress at intervals.
    limit
        Limits the server's connections.
    unfinished
        Limits the bytes of bodies that are not complete, of all connections.
    is_leaving
        Returns True while clients should reconnect to another server.
    is_stopping
        Returns True while the server is shutting down.

    Attributes
    ----------
    lost
        True if no client waits any more for the response in progress.
    """

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 (uvicorn's own)
        timeouts: ClientTimeouts,
        limit: ClientLimit,
        unfinished: UnfinishedBodies,
        is_leaving: Callable[[], bool] = lambda: False,
        is_stopping: Callable[[], bool] = lambda: False,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lost = False
        self.url = b""
        self._timeouts = timeouts
        self._limit = limit
        self._body = UnfinishedBody(unfinished)
        self._is_stopping = is_stopping
        self._timer = ProgressTimer()
        self._state = State.IDLE
        self._idle_since = 0.0
        #: True if the next response that starts is the last one.
        self._ending = is_leaving()
        self._aging: asyncio.TimerHandle | None = None
        #: The request being answered. Later ones may have been read already.
        self._answering: RequestResponseCycle | None = None
        #: The task that answers it, or another object that can be cancelled.
        self._task: Cancellable | None = None
        self._read = ReadProgress()
        self._rules = HeadRules()
        #: True while the parser is fed a head that replaces the client's; see `_stay_with_http`.
        self._resuming = False
        #: The error response that waits to be sent; empty where none can be sent.
        self._refusal = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        self._out = CoalescingTransport(transport, self.loop)
        super().connection_made(self._out)  # type: ignore[arg-type]
        self.flow = PipelineFlowControl(transport, self.pipeline)
        transport.set_write_buffer_limits(MAX_UNCOUNTED)
        self._timeouts.start(self.loop, self.connections)
        self._aging = self.loop.call_later(CONNECTION_AGE_S * random.uniform(0.8, 1.2), self.end)  # noqa: S311
        if self._is_stopping():
            # Accepted before the server stopped accepting, and after it shut down all other connections.
            self.shutdown()
        if self._limit.admits(len(self.connections)):
            self._limit.became_idle(self)
        else:
            self._refuse_connection()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        if self._answering is not None and not self._answering.response_complete:
            # uvicorn marks only the last request, and logs an error when this one sends no response.
            self._answering.disconnected = True
        self._cancel()
        self._drop_references()

    def _drop_references(self) -> None:
        """Drop all references to requests, because these refer to their connection.

        The garbage collector runs rarely, so the memory of a cycle would be kept for long.
        """
        self._unset_keepalive_if_required()
        if self._aging is not None:
            self._aging.cancel()
        self._limit.remove(self)
        self._limit.unread.remove(self)
        self._body.release()
        while self.pipeline:
            self.pipeline.pop()
            self._limit.pipelined.remove(self)
        self.cycle = self.scope = self.headers = None  # type: ignore[assignment]
        self._answering = self._task = None

    # Reading requests.

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._is_refused:
            return
        read = self._read
        read.received += len(data)
        read.head_fits = self._state is not State.HEAD and len(data) <= MAX_HEAD
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._refuse(refusal_of(error))
        else:
            if read.received - read.useful > MAX_HEAD:
                self._refuse(self._head_too_large())
            elif self._state is State.BODY:
                self._hold_body()

    def _feed(self, data: bytes) -> None:
        """Parse data, also behind heads that offer an upgrade to another protocol."""
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._stay_with_http()
            else:
                return

    def _should_upgrade(self) -> bool:
        # No other protocol is offered, and uvicorn would refuse one before it answers earlier requests.
        return False

    def _stay_with_http(self) -> None:
        """Read on behind a head that offers an upgrade, as Java's client does with its first request.

        The parser stops there and would take the body for the other protocol. A new parser gets a head that
        only announces the body's length.
        """
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        lengths = [b"%s: %s\r\n" % header for header in self.headers if header[0] in _LENGTHS]
        self._resuming = True
        try:
            self.parser.feed_data(b"".join([b"POST / HTTP/1.1\r\n", *lengths, b"\r\n"]))
        finally:
            self._resuming = False

    def on_message_begin(self) -> None:
        """Begin a request; see `httptools.HttpRequestParser`."""
        if not (self._is_answered or self._limit.pipelined.allows(self)):
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"too many pipelined requests: limit {MAX_PIPELINED}, half of it for one connection",
                limit="pipelined requests",
            )
        self._state = State.HEAD
        self._read.requests += 1
        self._body.begin()
        self._reset_request()

    def _reset_request(self) -> None:
        """Forget the head of the request before."""
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start to answer the request, or queue it."""
        if len(self.headers) > MAX_HEADERS or not (self._read.head_fits or self._head_bytes() <= MAX_HEAD):
            raise self._head_too_large()
        if not self._resuming:
            parser = self.parser
            self._start(
                self._rules.check(parser.get_http_version(), parser.get_method(), self.url, self.headers)
            )
        # A copy, because the parser adds trailers to the list, which are not headers.
        self.headers = self.headers.copy()
        self._state = State.BODY
        self._read.note()

    def _start(self, by_name: HeaderDict) -> None:
        """Start to answer a request whose head is complete, or queue it."""
        self.scope["extensions"] = {CONNECTION: self}  # type: ignore[dict-item]
        waiting = len(self.pipeline)
        super().on_headers_complete()
        if len(self.pipeline) > waiting:
            self._limit.pipelined.add(self)
        if b"%2" in self.url:
            self.scope["path"] = decoded_path(self.scope["raw_path"])

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        super().on_body(body)
        self._body.size += len(body)
        self._read.note()

    def on_message_complete(self) -> None:
        """End a request."""
        if self.parser.should_upgrade():
            # Its body is still to come; see `_stay_with_http`.
            return
        super().on_message_complete()
        self._state = State.IDLE
        self._read.note()
        self._body.release()

    def _hold_body(self) -> None:
        """Reserve the bytes of a body that is not complete, unless they are discarded."""
        try:
            self._body.hold(discarded=self.cycle.response_complete)
        except QueueFull as error:
            self._refuse(Refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error), limit="unfinished bodies"))

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _head_too_large(self) -> Refusal:
        if len(self.url) > MAX_HEAD // 2:
            return Refusal(
                HTTPStatus.REQUEST_URI_TOO_LONG,
                f"path too long: limit {MAX_HEAD // 2} bytes, got {len(self.url)} or more",
                limit="path",
            )
        return Refusal(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"head too large: limit {MAX_HEADERS} headers and {MAX_HEAD} bytes",
            limit="head",
        )

    # Answering requests.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401 (uvicorn's own)
        self._answering = cycle
        if self._ending and not self.pipeline:
            cycle.keep_alive = False
        super()._start_asgi_task(cycle, app)

    def pause_writing(self) -> None:
        """Write no further response, because the client does not read."""
        super().pause_writing()
        self._limit.unread.add(self, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Write again."""
        super().resume_writing()
        self._limit.unread.remove(self)

    def abort(self) -> None:
        """Close the connection at once."""
        self.transport.abort()

    def on_response_complete(self) -> None:
        """Go on with the next request, or with the error that waits."""
        # uvicorn's own method starts and cancels a timer for each response.
        self.server_state.total_requests += 1
        if self.cycle.response_complete:
            self._body.release()
        if not self.transport.is_closing():
            if self.flow.read_paused:
                self.flow.resume_reading()
            if self.pipeline:
                self._limit.pipelined.remove(self)
                self._start_asgi_task(*self.pipeline.pop())
            else:
                self._limit.became_idle(self)
                self._idle_since = self.loop.time()
                if self.timeout_keep_alive_task is None:
                    self._close_idle_after(self.timeout_keep_alive)
        if self._state is State.REFUSING:
            self._send_refusal()

    def _close_idle_after(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it has been idle for long enough, else wait on."""
        self.timeout_keep_alive_task = None
        if self._state is State.IDLE and self._is_answered:
            remaining = self._idle_since + self.timeout_keep_alive - self.loop.time()
            if remaining > 0:
                self._close_idle_after(remaining)
            else:
                self.transport.close()

    def end(self) -> None:
        """End this connection with the response to the last request that was read, or to the next one."""
        self._ending = True
        if self.cycle is not None and not self.pipeline and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """End this connection with the response in progress, or that to a request of the next second.

        uvicorn would close an idle connection at once, even if a request is just arriving.
        """
        self._ending = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(LAST_REQUEST_S, super().shutdown)
        else:
            super().shutdown()

    async def needed(self, answer: Coroutine[Any, Any, T]) -> T:
        """Await an answer, and cancel it when no client waits for it any more.

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

    def _cancel(self) -> None:
        self.lost = True
        if self._task is not None:
            self._task.cancel()

    @property
    def is_idle(self) -> bool:
        """True while the connection carries no part of a request or a response."""
        return self._state is State.IDLE and self._is_answered and not self.transport.get_write_buffer_size()

    def close_idle(self) -> None:
        """Close an idle connection to make place for another one."""
        # It does not count from now on, although it is lost only after the present events.
        self.connections.discard(self)
        # Over TLS, close() would wait for the client. Nothing is left to send.
        self.transport.abort()

    @property
    def _is_answered(self) -> bool:
        """True if every request that was read has its response."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.disconnected

    # Refusing requests.

    @property
    def _is_refused(self) -> bool:
        # Not a set: this is checked for all data that arrive, and an enum's hash is slow.
        return self._state is State.REFUSING or self._state is State.REFUSED

    def _refuse(self, refusal: Refusal) -> None:
        """Read no further request, and answer the one being read with an error, after those before it."""
        if refusal.limit:
            REFUSALS.labels(refusal.limit).inc()
        self._refusal = refusal.response(self.server_state.default_headers)
        if self._state is State.BODY:
            self._drop_request()
        self._state = State.REFUSING
        self._send_refusal()

    def _refuse_connection(self) -> None:
        """Refuse all requests, because the server has too many connections."""
        if not self._limit.can_answer(len(self.connections)):
            self.transport.abort()
            return
        text = f"too many connections: limit {self._limit.max_connections}; try again later"
        self._refuse(Refusal(HTTPStatus.SERVICE_UNAVAILABLE, text, limit="connections"))

    def _drop_request(self) -> None:
        """Drop the request whose body is being read, queued or in progress."""
        self._body.release()
        cycle = self.cycle
        if self.pipeline:
            self.pipeline.popleft()
            self._limit.pipelined.remove(self)
            self.cycle = self.pipeline[0][0] if self.pipeline else self._answering  # type: ignore[assignment]
            return
        if cycle.response_started:
            self._refusal = b""
        cycle.disconnected = True
        cycle.message_event.set()
        self._cancel()

    def _send_refusal(self) -> None:
        if not self._is_answered or self.transport.is_closing():
            return
        self._state = State.REFUSED
        self.transport.write(self._refusal)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        # Closing with unread bytes would reset the connection, and the client may lose the response.
        self.flow.resume_reading()

    # Timeouts.

    def check_progress(self, timeout_s: float) -> None:
        """Check what the connection waits for, and end it when the client's time is up."""
        waits, progress = self._waits_for()
        if self._timer.check(waits, self._read.requests, progress):
            self._time_out(waits, timeout_s)

    def _waits_for(self) -> tuple[WaitsFor, int]:
        """Return the action that is waited for, and how many bytes it has transferred."""
        unread = self.transport.get_write_buffer_size()
        if unread:
            return WaitsFor.READ, self._out.written - unread
        if self.transport.is_closing():
            return WaitsFor.NOTHING, 0
        if self._state is State.REFUSED:
            return WaitsFor.CLOSE, 0
        if not self._is_answered:
            # Nothing is read of a request that waits for its turn.
            held_up = self.flow.read_paused or self.cycle.waiting_for_100_continue
            if self._state is State.BODY and not held_up:
                return WaitsFor.BODY, self._read.received
            return WaitsFor.NOTHING, 0
        return WAITS_FOR[self._state], 0

    def _time_out(self, waits: WaitsFor, timeout_s: float) -> None:
        if waits is WaitsFor.HEAD:
            text = f"head too slow: limit {timeout_s:g} s for a request's head"
            self._refuse(Refusal(HTTPStatus.REQUEST_TIMEOUT, text, limit="time"))
        elif waits is WaitsFor.BODY:
            text = f"body too slow: limit {timeout_s:g} s for each {MIN_PROGRESS} bytes of a request's body"
            self._refuse(Refusal(HTTPStatus.REQUEST_TIMEOUT, text, limit="time"))
        elif waits is WaitsFor.READ:
            self.transport.abort()
        elif waits in {WaitsFor.REMAINDER, WaitsFor.CLOSE} or (
            waits is WaitsFor.REQUEST and self.cycle is None
        ):
            self.transport.close()
