"""An S3 endpoint that misbehaves: it hangs, sends without an end, or breaks connections."""

import contextlib
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

CHUNK = b"%x\r\n%s\r\n" % (2**16, b" " * 2**16)


@dataclass
class Exchange:
    """A request's head and the connection that its response goes to.

    Attributes
    ----------
    head
        Request line and headers, lower-case.
    stopped
        Set when the server ends.
    """

    head: str
    connection: socket.socket
    stopped: threading.Event

    def send(self, content: bytes) -> None:
        self.connection.sendall(content)


Behaviour = Callable[[Exchange], None]


@dataclass
class HostileS3:
    """A server on loopback with one behaviour, and the heads of the requests that it got."""

    url: str
    requests: list[str] = field(default_factory=list)


@contextlib.contextmanager
def hostile_s3(behaviour: Behaviour) -> Iterator[HostileS3]:
    """Run a server that answers each request with the behaviour, until the client disconnects."""
    stopped = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                while head := self._read_head():
                    found.requests.append(head)
                    behaviour(Exchange(head, self.connection, stopped))

        def _read_head(self) -> str:
            """Return a request's head, or an empty text if the client has disconnected."""
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = self.rfile.readline()
                if not line:
                    return ""
                head += line
            return head.decode().lower()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        found = HostileS3(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            stopped.set()
            server.shutdown()
            thread.join()


def silent(exchange: Exchange) -> None:
    """Answer nothing."""
    exchange.stopped.wait()


def dripping(exchange: Exchange) -> None:
    """Answer one byte of a body now and then, so that no read ever times out."""
    exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    while not exchange.stopped.wait(0.05):
        exchange.send(b" ")


def endless(status: str) -> Behaviour:
    """Answer with a body that does not end."""

    def behave(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 %s\r\ntransfer-encoding: chunked\r\n\r\n" % status.encode())
        while not exchange.stopped.is_set():
            exchange.send(CHUNK)

    return behave


def announcing(size: int) -> Behaviour:
    """Announce a large body, and send nothing of it."""

    def behave(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        exchange.stopped.wait()

    return behave


def endless_listing(exchange: Exchange) -> None:
    """Answer each page of a listing with the promise of another page."""
    page = (
        b"<?xml version='1.0'?><ListBucketResult><IsTruncated>true</IsTruncated>"
        b"<NextContinuationToken>more</NextContinuationToken>"
        b"<Contents><Key>models/placement/v1/bundle.json</Key><Size>1</Size></Contents></ListBucketResult>"
    )
    exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(page), page))


def interrupted(content: bytes, parts: int) -> Behaviour:
    """Answer a file, and break the connection after each part of it; a range continues."""

    def behave(exchange: Exchange) -> None:
        _, _, asked = exchange.head.partition("range: bytes=")
        start = int(asked.split("-")[0]) if asked else 0
        status = b"206 Partial Content" if asked else b"200 OK"
        rest = content[start:]
        exchange.send(b"HTTP/1.1 %s\r\netag: one\r\ncontent-length: %d\r\n\r\n" % (status, len(rest)))
        exchange.send(rest[: -(-len(content) // parts)])
        exchange.connection.shutdown(socket.SHUT_RDWR)

    return behave
