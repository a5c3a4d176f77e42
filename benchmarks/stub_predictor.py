"""A predictor that costs almost no time, to measure the transformer alone.

python -m benchmarks.stub_predictor BUNDLE_DIRECTORY PORT

It passes the transformer's verification: it answers named columns with the reference rows' probabilities. All
other requests get a constant probability, over V1 and V2.
"""

import asyncio
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import orjson
import uvloop

from benchmarks.http_messages import Message, MessageReader
from transformer.bundle.format import Version, load_bundle

#: Probability that it answers for every candidate.
PROBABILITY = 0.75


class _Stub:
    """Makes the answers of the stub predictor."""

    def __init__(self, version: Version) -> None:
        self._classes = version.target.columns
        self._column = version.target.positive_column
        self._reference = self._matrix(version.expected[:, 0].tolist())

    def answer(self, request: Message) -> bytes:
        """Return the body of the answer to a request."""
        if b"/infer" not in request.path and b":predict" not in request.path:
            return b"{}"
        content = _content(request)
        if "instances" in content:
            named = isinstance(content["instances"][0], dict)
            return self._v1(None if named else len(content["instances"]))
        named = content.get("parameters", {}).get("content_type") == "pd"
        output = (content.get("outputs") or [{"name": "output-0"}])[0]["name"]
        return self._v2(None if named else content["inputs"][0]["shape"][0], output)

    def _matrix(self, probabilities: Sequence[float]) -> list[list[float]]:
        rows = []
        for probability in probabilities:
            row = [(1 - probability) / (self._classes - 1)] * self._classes
            row[self._column] = probability
            rows.append(row)
        return rows

    def _rows(self, count: int | None) -> list[list[float]]:
        return self._reference if count is None else self._matrix((PROBABILITY,) * count)

    @cache  # noqa: B019 (there is only one stub)
    def _v1(self, count: int | None) -> bytes:
        return orjson.dumps({"predictions": self._rows(count)})

    @cache  # noqa: B019
    def _v2(self, count: int | None, output: str) -> bytes:
        rows = self._rows(count)
        tensor = {
            "name": output,
            "datatype": "FP64",
            "shape": [len(rows), self._classes],
            "data": [value for row in rows for value in row],
        }
        return orjson.dumps({"model_name": "placement", "outputs": [tensor]})


def _content(request: Message) -> dict[str, Any]:
    """Parse the JSON of a request, without the binary tensors that may follow it."""
    length = request.header(b"inference-header-content-length")
    content: dict[str, Any] = orjson.loads(request.body[: int(length)] if length else request.body)
    return content


class _Connection(asyncio.Protocol):
    def __init__(self, stub: _Stub) -> None:
        self._stub = stub
        self._reader = MessageReader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        request = self._reader.feed(data)
        while request is not None:
            body = self._stub.answer(request)
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            self._transport.write(head % len(body) + body)
            request = self._reader.feed(b"")


async def _serve(stub: _Stub, port: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(stub), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(_Stub(load_bundle(sys.argv[1])), int(sys.argv[2])))
