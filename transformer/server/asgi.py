"""Types of ASGI, and the length of a request's body."""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Coroutine[Any, Any, None]]

#: Maximum bytes of a body that is read at once; a longer one waits for its turn.
MAX_UNREAD = 64 * 2**10


def content_length(headers: Mapping[bytes, bytes]) -> int | None:
    """Return the announced bytes of a request's body; None if there is no valid length."""
    digits = headers.get(b"content-length", b"")
    if not digits.isdigit():
        return None
    # Python refuses numbers of thousands of digits, and leading zeros do not count.
    return int(digits.lstrip(b"0")[:20] or b"0")
