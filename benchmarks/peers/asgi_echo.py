"""ASGI application that answers with the request's body, to measure uvicorn alone.

uvicorn asgi_echo:echo --port PORT
"""

from typing import Any


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:  # noqa: ANN401 (ASGI's callables)
    """Answer a request with its own body."""
    if scope["type"] != "http":
        return
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
