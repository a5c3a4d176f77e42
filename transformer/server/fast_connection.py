"""A client's connection that answers plain predictions itself; the others go through ASGI.

uvicorn makes a scope, a cycle, a task and two messages for each request: half of the time of a small one.
"""

import asyncio
from functools import cached_property
from typing import Any

from transformer.bundle.prediction import Prediction
from transformer.errors import PredictorUnavailable
from transformer.server.client_connection import ClientConnection
from transformer.server.connection_state import State
from transformer.server.fast_path import FastPath, PlainHead, PlainRequest
from transformer.server.handler import InProgress, Unusual
from transformer.server.known_heads import KnownHeads
from transformer.server.request_head import HeaderDict
from transformer.server.uvicorn_internals import HttpToolsProtocol, RequestResponseCycle


class FastConnection(ClientConnection):
    """One client's connection with a fast path.

    Parameters
    ----------
    *args, **kwargs
        As `ClientConnection`.
    fast_path
        Finds plain requests, and makes the responses to them.
    known_heads
        The heads that need not be parsed again.
    """

    def __init__(self, *args: Any, fast_path: FastPath, known_heads: KnownHeads, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._fast_path = fast_path
        self._known_heads = known_heads
        #: The data just received, if the next head is at their start.
        self._first_data = b""

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._state is State.IDLE and self._is_answered and not self.flow.write_paused:
            found = self._known_heads.find(data)
            if found is not None and self._answer_known(*found):
                self._read.skip(len(data))
                return
            self._first_data = data
        super().data_received(data)
        self._first_data = b""

    def _answer_known(self, head: PlainHead, body: bytes) -> bool:
        """Begin to answer a complete request; return False if it is to be parsed."""
        cycle = PlainCycle(self, self._fast_path, head, keep_alive=not self._ending)
        self.cycle = self._answering = self._task = cycle
        try:
            cycle.begin(body)
        except Unusual:
            self.cycle = self._answering = self._task = None  # type: ignore[assignment]
            return False
        return True

    def _reset_request(self) -> None:
        # The scope is made when it is needed.
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def _start(self, by_name: HeaderDict) -> None:
        head = self._plain_head(by_name)
        if head is None:
            self._start_through_asgi(by_name)
        else:
            if self._first_data:
                self._known_heads.add(self._first_data, head)
            cycle = PlainCycle(self, self._fast_path, head, keep_alive=not self._ending)
            self.cycle = self._answering = self._task = cycle
        # The next head is not at their start.
        self._first_data = b""

    def _plain_head(self, by_name: HeaderDict) -> PlainHead | None:
        """Return the head of a plain request that can be answered next; None for all others."""
        parser = self.parser
        if (
            parser.get_method() != b"POST"
            or not self._is_answered
            or self.pipeline
            # The response would have to wait.
            or self.flow.write_paused
            or parser.get_http_version() != "1.1"
            or not parser.should_keep_alive()
        ):
            return None
        return self._fast_path.plain_head(self.url, by_name, len(self.headers))

    def _start_through_asgi(self, by_name: HeaderDict) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super()._reset_request()
        self.url, self.expect_100_continue = url, expects
        # The scope has this list.
        self.headers.extend(headers)
        super()._start(by_name)

    def on_message_complete(self) -> None:
        """End a request."""
        super().on_message_complete()
        cycle = self.cycle
        if isinstance(cycle, PlainCycle) and not cycle.more_body and not cycle.response_complete:
            try:
                cycle.begin(bytes(cycle.body))
            except Unusual:
                self._repeat_through_asgi(cycle)

    def _repeat_through_asgi(self, cycle: "PlainCycle") -> None:
        self.cycle = self._answering = self._task = None  # type: ignore[assignment]
        self._start_through_asgi(HeaderDict(self.headers))
        HttpToolsProtocol.on_body(self, bytes(cycle.body))
        HttpToolsProtocol.on_message_complete(self)

    def respond(self, response: bytes, *, keep_alive: bool) -> None:
        """Send the response to a plain request, and go on with the next request."""
        self._task = None
        if not keep_alive:
            response = response.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)
        self._out.write_whole(response)
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()


class _NoEvent(asyncio.Event):
    """An event that nothing waits for."""

    def set(self) -> None:
        """Do nothing."""


_NO_EVENT = _NoEvent()


class PlainCycle(RequestResponseCycle):
    """One plain request, with those attributes of uvicorn's cycle that its protocol and ours use."""

    message_event = _NO_EVENT
    more_body = True
    waiting_for_100_continue = disconnected = response_started = response_complete = False

    def __init__(
        self, connection: FastConnection, fast_path: FastPath, head: PlainHead, *, keep_alive: bool
    ) -> None:
        # Not uvicorn's own, which makes what an ASGI application needs.
        self.keep_alive = keep_alive
        self._connection = connection
        self._fast_path = fast_path
        self._handler = fast_path.handler
        self._head = head
        self._progress: InProgress[PlainRequest] | None = None

    @cached_property
    def body(self) -> bytearray:  # type: ignore[override]
        """The body, if it is read in pieces."""
        return bytearray()

    def begin(self, body: bytes) -> None:
        """Begin to answer the complete request.

        Raises
        ------
        Unusual
            If the application must read the body.
        """
        head = self._head
        try:
            self._progress = self._handler.begin(
                head.kind, lambda: head.decode(body, head.json_length), head.forwardable, len(body)
            )
        except Unusual:
            raise
        except Exception as error:  # noqa: BLE001 (a bug must not end the connection)
            self._fail(error)
        else:
            self._progress.answer.add_done_callback(self._answered)

    def cancel(self) -> None:
        """Drop the request, because no client waits for its response any more."""
        if self._progress is not None:
            self._progress.answer.cancel()

    def _answered(self, answer: asyncio.Future[Prediction]) -> None:
        progress, self._progress = self._progress, None
        assert progress is not None  # noqa: S101 (begun)
        if answer.cancelled() or self.disconnected:
            self._handler.abandon(progress)
            return
        # Not raised here: its traceback would refer to this frame, and so to itself.
        error = answer.exception()
        if error is None:
            self._respond(self._fast_path.success(progress, self._connection.server_state.default_headers))
        else:
            self._handler.fail(progress, error)
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        # Another transformer may have the predictor that this one lacks.
        self.keep_alive = self.keep_alive and not isinstance(error, PredictorUnavailable)
        self._respond(self._fast_path.failure(error, self._connection.server_state.default_headers))

    def _respond(self, response: bytes) -> None:
        self.response_started = self.response_complete = True
        self._connection.respond(response, keep_alive=self.keep_alive)
