"""The state of a client's connection: what it reads next, and how far it has come."""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from transformer.server.client_timeouts import WaitsFor


class State(Enum):
    """The part of a request that a connection reads next."""

    #: The first byte of a request.
    IDLE = "idle"
    HEAD = "head"
    BODY = "body"
    #: Nothing: an error waits until the requests before it are answered.
    REFUSING = "refusing"
    #: Nothing: the error is sent, and the rest of what the client sends is discarded.
    REFUSED = "refused"


class Cancellable(Protocol):
    """The work for one request."""

    def cancel(self) -> object:
        """End it."""


@dataclass(slots=True)
class ReadProgress:
    """Progress of the requests on a connection.

    Attributes
    ----------
    requests
        Requests that have begun.
    received
        Bytes received.
    useful
        Bytes that had been received when a request last made progress.
    head_fits
        True if a head that ends in the present data is surely within the limit, so it need not be measured.
    """

    requests: int = 0
    received: int = 0
    useful: int = 0
    head_fits: bool = True

    def skip(self, size: int) -> None:
        """Note that a whole request was received."""
        self.requests += 1
        self.received += size
        self.useful = self.received

    def note(self) -> None:
        """Note that a request has made progress."""
        self.useful = self.received


#: The action that a connection waits for, when every request that was read has its response.
WAITS_FOR = {
    State.IDLE: WaitsFor.REQUEST,
    State.HEAD: WaitsFor.HEAD,
    State.BODY: WaitsFor.REMAINDER,
    State.REFUSING: WaitsFor.NOTHING,
}
