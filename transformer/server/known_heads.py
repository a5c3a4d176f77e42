"""Heads of plain requests that were parsed and checked before: clients repeat theirs byte for byte.

To parse and check a head takes a third of the time of a small request.
"""

from transformer.server.fast_path import PlainHead

#: Maximum heads that are kept, and bytes of each: 1 MiB together.
MAX_HEADS = 512
MAX_HEAD_BYTES = 2048
_METHOD, _END = b"POST ", b"\r\n\r\n"


class KnownHeads:
    """The heads that the connections of one server have in common."""

    def __init__(self) -> None:
        self._heads: dict[bytes, PlainHead] = {}

    def __len__(self) -> int:
        return len(self._heads)

    def find(self, data: bytes) -> tuple[PlainHead, bytes] | None:
        """Return head and body of data that are one request with a known head; None for all others."""
        start = data.find(_END) + len(_END)
        head = self._heads.get(data[:start])
        if head is None or len(data) - start != head.body_bytes:
            return None
        return head, data[start:]

    def add(self, data: bytes, head: PlainHead) -> None:
        """Keep a head with which data begin, for later requests.

        A head with tracing headers or credentials is not kept: the next one has others.
        """
        size = data.find(_END) + len(_END)
        # The parser skips empty lines before a request, so such data do not begin with its head.
        if head.forwardable or size > MAX_HEAD_BYTES or not data.startswith(_METHOD):
            return
        if len(self._heads) >= MAX_HEADS:
            del self._heads[next(iter(self._heads))]
        self._heads[data[:size]] = head
