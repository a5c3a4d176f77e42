"""A client's connection that answers plain predictions itself; the others go through ASGI.

uvicorn makes a scope, a cycle, a task and two messages for each request: half of the time of a small one.
"""

import asyncio
from typing import Any

from transformer.bundle.prediction import Prediction
from transformer.errors import PredictorUnavailable
from transformer.server.client_connection import ClientConnection
from transformer.server.fast_path import Decoder, FastPath, PlainRequest
from transformer.server.handler import InProgress, Unusual
from transformer.server.request_head import HeaderDict
from transformer.server.uvicorn_internals import HttpToolsProtocol, RequestResponseCycle


class FastConnection(ClientConnection):
    """One client's connection with a fast path.

    Parameters
    ----------
    *args, **kwargs
        As `ClientConnection`.
    fast_path
        Finds plain requests, and answers them.
    """

    def __init__(self, *args: Any, fast_path: FastPath, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._fast_path = fast_path

    def _reset_request(self) -> None:
        # The scope is made when it is needed.
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def _start(self, by_name: HeaderDict) -> None:
        decoder = self._decoder(by_name)
        if decoder is None:
            self._start_through_asgi(by_name)
        else:
            cycle = PlainCycle(self, self._fast_path, decoder, by_name)
            cycle.keep_alive = not self._ending
            self.cycle = self._answering = self._task = cycle

    def _decoder(self, by_name: HeaderDict) -> Decoder | None:
        """Return the decoder of a plain request that can be answered next; None for all others."""
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
        return self._fast_path.route(self.url, by_name, len(self.headers))

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
                cycle.begin()
            except Unusual:
                self._repeat_through_asgi(cycle)

    def _repeat_through_asgi(self, cycle: "PlainCycle") -> None:
        self.cycle = self._answering = self._task = None  # type: ignore[assignment]
        self._start_through_asgi(cycle.headers)
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

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of every response."""
        return self.server_state.default_headers


class PlainCycle(RequestResponseCycle):
    """One plain request, with those attributes of uvicorn's cycle that its protocol and ours use."""

    def __init__(
        self, connection: FastConnection, fast_path: FastPath, decoder: Decoder, headers: HeaderDict
    ) -> None:
        # Not uvicorn's own, which makes what an ASGI application needs.
        self.headers = headers
        self.body = bytearray()
        self.more_body = True
        self.message_event = _NO_EVENT
        self.waiting_for_100_continue = False
        self.keep_alive = True
        self.disconnected = self.response_started = self.response_complete = False
        self._connection = connection
        self._fast_path = fast_path
        self._decoder = decoder
        self._progress: InProgress[PlainRequest] | None = None

    def begin(self) -> None:
        """Begin to answer the complete request.

        Raises
        ------
        Unusual
            If the application must read the body.
        """
        try:
            self._progress = self._fast_path.begin(self._decoder, bytes(self.body), self.headers)
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
            self._fast_path.abandon(progress)
            return
        # Not raised here: its traceback would refer to this frame, and so to itself.
        error = answer.exception()
        if error is None:
            self._respond(self._fast_path.end(progress, self._connection.default_headers))
        else:
            self._fast_path.fail(progress, error)
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        # Another transformer may have the predictor that this one lacks.
        self.keep_alive = self.keep_alive and not isinstance(error, PredictorUnavailable)
        self._respond(self._fast_path.failure(error, self._connection.default_headers))

    def _respond(self, response: bytes) -> None:
        self.response_started = self.response_complete = True
        self._connection.respond(response, keep_alive=self.keep_alive)


class _NoEvent(asyncio.Event):
    """An event that nothing waits for."""

    def set(self) -> None:
        """Do nothing."""


_NO_EVENT = _NoEvent()
