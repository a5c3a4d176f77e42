"""Requests that break rules of HTTP/1.1 get an error: a gateway may read them in another way."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.fake_mlserver import FakeMLServer
from tests.support.in_process_transformer import ListeningTransformer, listening_transformer
from tests.support.raw_http import parse_responses, raw_connection
from tests.support.request_bodies import v2_objects
from tests.support.sklearn_reference import SklearnReference
from training.candidates import SAMPLE

#: Content types of the fast path and of KServe's route, and their names.
FAST_PATH, KSERVES_ROUTE = b"application/json", b"application/json; charset=utf-8"
ROUTES = {"fast path": FAST_PATH, "KServe's route": KSERVES_ROUTE}
BODY = json.dumps({"instances": [SAMPLE]}).encode()
LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
HOST, CHUNKED = b"Host: a", b"Transfer-Encoding: chunked"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def transformer(version_pair) -> AsyncIterator[ListeningTransformer]:
    bundle = version_pair("retrained").new
    async with (
        FakeMLServer(SklearnReference(bundle)).running() as predictor,
        listening_transformer(bundle, predictor.address, "--predictor_protocol=v2") as listening,
    ):
        yield listening


async def responses(transformer: ListeningTransformer, sent: bytes) -> list[tuple[int, bytes]]:
    """Return all responses until the server closes the connection."""
    async with raw_connection(transformer.port) as client:
        client.send(sent)
        return parse_responses(await client.reader.read())


def post(
    *headers: bytes,
    body: bytes = BODY,
    line: bytes = b"POST %s HTTP/1.1" % V1_PREDICT.encode(),
    content_type: bytes = FAST_PATH,
) -> bytes:
    return b"\r\n".join([line, *headers, b"Content-Type: " + content_type, b"", body])


def line(target: bytes = V1_PREDICT.encode(), method: bytes = b"POST", version: bytes = b"HTTP/1.1") -> bytes:
    return b"%s %s %s" % (method, target, version)


#: Headers and body of a prediction, and the status of its only response.
FRAMING = {
    "transfer-encoding: gzip, chunked": ((HOST, b"Transfer-Encoding: gzip, chunked"), CHUNKS, 501),
    "transfer-encoding: gzip and chunked in two lines": (
        (HOST, b"Transfer-Encoding: gzip", CHUNKED),
        CHUNKS,
        501,
    ),
    "transfer-encoding: an empty element": ((HOST, b"Transfer-Encoding: ,chunked"), CHUNKS, 501),
    "transfer-encoding: chunked twice": ((HOST, b"Transfer-Encoding: chunked, chunked"), CHUNKS, 400),
    "transfer-encoding: chunked in two lines": ((HOST, CHUNKED, CHUNKED), CHUNKS, 400),
    "transfer-encoding: chunked is not the last": ((HOST, b"Transfer-Encoding: chunked, gzip"), CHUNKS, 400),
    "transfer-encoding: identity": ((HOST, b"Transfer-Encoding: identity"), BODY, 400),
    "transfer-encoding: identity after chunked": (
        (HOST, CHUNKED, b"Transfer-Encoding: identity"),
        CHUNKS,
        400,
    ),
    "transfer-encoding: unknown": ((HOST, b"Transfer-Encoding: xchunked"), CHUNKS, 400),
    "transfer-encoding: with a parameter": ((HOST, b"Transfer-Encoding: chunked;q=1"), CHUNKS, 400),
    "transfer-encoding: quoted": ((HOST, b'Transfer-Encoding: "chunked"'), CHUNKS, 400),
    "transfer-encoding: vertical tab": ((HOST, b"Transfer-Encoding: \x0bchunked"), CHUNKS, 400),
    "transfer-encoding: empty": ((HOST, b"Transfer-Encoding:"), CHUNKS, 400),
    "transfer-encoding: space before the colon": ((HOST, b"Transfer-Encoding : chunked"), CHUNKS, 400),
    "length and chunks": ((HOST, LENGTH, CHUNKED), CHUNKS, 400),
    "chunks and length": ((HOST, CHUNKED, LENGTH), CHUNKS, 400),
    "length and another encoding": ((HOST, LENGTH, b"Transfer-Encoding: gzip"), BODY, 400),
    "equal lengths": ((HOST, LENGTH, LENGTH), BODY, 400),
    "different lengths": ((HOST, LENGTH, b"Content-Length: 1"), BODY, 400),
    "length: a list": ((HOST, LENGTH + b", %d" % len(BODY)), BODY, 400),
    "length: signed": ((HOST, LENGTH.replace(b": ", b": +")), BODY, 400),
    "length: negative": ((HOST, b"Content-Length: -1"), BODY, 400),
    "length: hexadecimal": ((HOST, b"Content-Length: 0x%x" % len(BODY)), BODY, 400),
    "length: two words": ((HOST, b"Content-Length: 1 1"), BODY, 400),
    "length: empty": ((HOST, b"Content-Length:"), BODY, 400),
    "length: too large": ((HOST, b"Content-Length: " + b"9" * 30), BODY, 400),
    "length: in the trailers": ((HOST, CHUNKED), CHUNKS[:-2] + LENGTH + b"\r\n\r\n", 400),
    "chunk size: signed": ((HOST, CHUNKED), b"+" + CHUNKS, 400),
    "chunk size: prefixed": ((HOST, CHUNKED), b"0x" + CHUNKS, 400),
    "chunk size: after a space": ((HOST, CHUNKED), b" " + CHUNKS, 400),
    "chunk size: before a space": ((HOST, CHUNKED), CHUNKS.replace(b"\r\n", b" \r\n", 1), 400),
    "chunk size: too large": ((HOST, CHUNKED), b"f" * 17 + b"\r\n" + BODY, 400),
    "chunk size: bare LF": ((HOST, CHUNKED), CHUNKS.replace(b"\r\n", b"\n", 1), 400),
    "chunk size: bare CR": ((HOST, CHUNKED), CHUNKS.replace(b"\r\n", b"\rX", 1), 400),
    "chunk extension: bare LF": ((HOST, CHUNKED), CHUNKS.replace(b"\r\n", b";a\nb\r\n", 1), 400),
    "chunk extension: NUL": ((HOST, CHUNKED), CHUNKS.replace(b"\r\n", b";a\0b\r\n", 1), 400),
    "chunk data: longer than the size": ((HOST, CHUNKED), b"1\r\n" + BODY + b"\r\n0\r\n\r\n", 400),
    "no host": ((LENGTH,), BODY, 400),
    "no host, chunks": ((CHUNKED,), CHUNKS, 400),
    "equal hosts": ((HOST, HOST, LENGTH), BODY, 400),
    "different hosts": ((HOST, b"host: b", LENGTH), BODY, 400),
    "host: two names": ((b"Host: a, b", LENGTH), BODY, 400),
    "host: a URL": ((b"Host: http://a", LENGTH), BODY, 400),
    "host: a user": ((b"Host: a@b", LENGTH), BODY, 400),
    "host: a path": ((b"Host: a/b", LENGTH), BODY, 400),
    "host: a bad port": ((b"Host: a:b", LENGTH), BODY, 400),
    "host: an open bracket": ((b"Host: [::1", LENGTH), BODY, 400),
    "folded line": ((HOST, b"a: b\r\n c", LENGTH), BODY, 400),
    "folded first line": ((b" a: b", HOST, LENGTH), BODY, 400),
    "bare LF": ((HOST + b"\n" + LENGTH,), BODY, 400),
    "bare CR": ((HOST + b"\r" + LENGTH,), BODY, 400),
    "space before a colon": ((b"Host : a", LENGTH), BODY, 400),
    "NUL in a value": ((HOST, b"a: b\0c", LENGTH), BODY, 400),
    "control character in a value": ((HOST, b"a: b\x01c", LENGTH), BODY, 400),
    "DEL in a value": ((HOST, b"a: b\x7fc", LENGTH), BODY, 400),
    "NUL in a name": ((HOST, b"a\0: b", LENGTH), BODY, 400),
    "name that is no token": ((HOST, b"a(b: c", LENGTH), BODY, 400),
    "no colon": ((HOST, b"a", LENGTH), BODY, 400),
    "content-encoding: gzip": ((HOST, b"Content-Encoding: gzip", LENGTH, b"Connection: close"), BODY, 415),
    "content-encoding: gzip, then identity": (
        (HOST, b"Content-Encoding: gzip", b"Content-Encoding: identity", LENGTH, b"Connection: close"),
        BODY,
        415,
    ),
}
#: Request lines of a prediction, and the status of its only response.
LINES = {
    "HTTP/2.0": (line(version=b"HTTP/2.0"), 505),
    "HTTP/0.9": (line(version=b"HTTP/0.9"), 505),
    "HTTP/1.2": (line(version=b"HTTP/1.2"), 400),
    "HTTP/01.1": (line(version=b"HTTP/01.1"), 400),
    "http/1.1": (line(version=b"http/1.1"), 400),
    "HTTPS/1.1": (line(version=b"HTTPS/1.1"), 400),
    "no version": (b"POST " + V1_PREDICT.encode(), 505),
    "space after the version": (line(version=b"HTTP/1.1 "), 400),
    "method in lower case": (line(method=b"post"), 400),
    "unknown method": (line(method=b"FOO"), 400),
    "method that is no token": (line(method=b"PO(T"), 400),
    "tab after the method": (b"POST\t" + V1_PREDICT.encode() + b" HTTP/1.1", 400),
    "space before the method": (b" " + line(), 400),
    "CONNECT to a host": (line(b"a:80", b"CONNECT"), 501),
    "CONNECT to a path": (line(method=b"CONNECT"), 501),
    "bare LF": (line() + b"\nHost: a", 400),
    "bare CR": (line() + b"\rHost: a", 400),
    "fragment": (line(V1_PREDICT.encode() + b"#a"), 400),
    "fragment after a query": (line(V1_PREDICT.encode() + b"?a#b"), 400),
    "URL of another scheme": (line(b"ftp://a" + V1_PREDICT.encode()), 400),
    "URL with a user": (line(b"http://u:p@a" + V1_PREDICT.encode()), 400),
    "URL without a host": (line(b"http://" + V1_PREDICT.encode()), 400),
    "URL without a path": (line(b"http://a"), 400),
    "host without a scheme": (line(b"a:80" + V1_PREDICT.encode()), 400),
    "asterisk": (line(b"*"), 400),
    "no slash": (line(V1_PREDICT.encode()[1:]), 400),
    "NUL in the path": (line(V1_PREDICT.encode() + b"\0"), 400),
    "control character in the path": (line(V1_PREDICT.encode() + b"\x01"), 400),
    "byte outside ASCII in the path": (line(V1_PREDICT.encode() + b"\xe9"), 400),
}
#: Paths that a gateway tells from the paths that they resemble.
OTHER_PATHS = [
    b"/v2/models/placement%2fready",
    b"/v2/models/placement%2Fready",
    b"/v2/models%2fplacement/ready",
    b"/v2%2fhealth%2fready",
    b"%2fv2/health/ready",
    b"/v2/models/placement%252fready",
    b"/v2/models/placement%5cready",
    b"/v2/models/placement\\ready",
    b"//v2/models/placement/ready",
    b"/v2//models/placement/ready",
    b"/v2/models/placement//ready",
    b"/v2/models/placement/ready/",
    b"/v2/models/other/../placement/ready",
    b"/v2/models/other/%2e%2e/placement/ready",
    b"/v2/./models/placement/ready",
    b"/v2/%2e/models/placement/ready",
    b"/v2/models/placement%00/ready",
    b"/v2/models/placement/ready%00",
    b"/v2/models/placement/ready%23",
    b"/v2/models/placement/ready%3f",
    b"/v2/models/placement/ready%20",
    b"/v2/models/placement/ready;a=b",
    b"/v2/models/placement/ready%zz",
    b"/v2/models/placement/ready%ff",
    b"/V2/models/placement/ready",
]


def is_error(content: Any) -> bool:
    return set(json.loads(content)) == {"error"}


@pytest.mark.parametrize("content_type", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize(("headers", "body", "status"), FRAMING.values(), ids=FRAMING)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_head_or_body_that_can_be_read_in_two_ways_is_refused(
    transformer, headers, body, status, content_type
):
    """Only one response comes, so no part of the request was read as another request."""
    ((found, content),) = await responses(transformer, post(*headers, body=body, content_type=content_type))
    assert found == status
    assert is_error(content)


@pytest.mark.parametrize("content_type", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize(("first", "status"), LINES.values(), ids=LINES)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_request_line_that_is_not_strict_is_refused(transformer, first, status, content_type):
    ((found, content),) = await responses(
        transformer, post(HOST, LENGTH, line=first, content_type=content_type)
    )
    assert found == status
    assert is_error(content)


@pytest.mark.parametrize("broken", [HOST + b"\r\nHost: b", b"a: b", HOST + b"\r\n" + CHUNKED])
@pytest.mark.asyncio(loop_scope="module")
async def test_a_later_request_of_a_connection_is_checked_too(transformer, broken):
    sent = post(HOST, LENGTH) + post(HOST, LENGTH) + post(broken, LENGTH)
    assert [status for status, _ in await responses(transformer, sent)] == [200, 200, 400]


@pytest.mark.asyncio(loop_scope="module")
async def test_another_method_for_the_same_target_is_checked_too(transformer):
    sent = post(HOST, LENGTH) + post(HOST, line=line(method=b"CONNECT"), body=b"")
    assert [status for status, _ in await responses(transformer, sent)] == [200, 501]


@pytest.mark.parametrize("target", OTHER_PATHS)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_path_that_only_resembles_another_is_not_found(transformer, target):
    sent = post(HOST, b"Connection: close", line=line(target, b"GET"), body=b"")
    ((status, content),) = await responses(transformer, sent)
    assert status == (400 if target.startswith(b"%") else 404)
    assert is_error(content)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"/v1/models%2fplacement:predict", 404),
        (b"/v1%2Fmodels/placement:predict", 404),
        (b"/v2/models%2Fplacement/infer", 404),
        # The metadata of a model of this name, which a client can only GET.
        (b"/v2/models/placement%2finfer", 405),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_predict_path_with_an_encoded_slash_predicts_nothing(transformer, target, status):
    sent = post(HOST, LENGTH, b"Connection: close", line=line(target))
    ((found, _),) = await responses(transformer, sent)
    assert found == status


#: Request lines and headers of valid predictions.
VALID = {
    "chunks": (line(), (HOST, CHUNKED)),
    "chunked in capitals, with spaces": (line(), (HOST, b"Transfer-Encoding: \t CHUNKED ")),
    "spaces behind the length": (line(), (HOST, LENGTH + b" \t ")),
    "empty host": (line(), (b"Host:", LENGTH)),
    "host with a port": (line(), (b"Host: a_b-c.example:8080", LENGTH)),
    "IPv6 host": (line(), (b"Host: [::1]:80 ", LENGTH)),
    "HTTP/1.0 without a host": (line(version=b"HTTP/1.0"), (LENGTH,)),
    "URL": (line(b"http://b" + V1_PREDICT.encode()), (HOST, LENGTH)),
    "URL in capitals": (line(b"HTTPS://B:80" + V1_PREDICT.encode()), (HOST, LENGTH)),
    "query": (line(V1_PREDICT.encode() + b"?a=%2f"), (HOST, LENGTH)),
    "encoded letter": (line(V1_PREDICT.encode().replace(b"m", b"%6d")), (HOST, LENGTH)),
    "encoded colon": (line(V1_PREDICT.encode().replace(b":", b"%3a")), (HOST, LENGTH)),
    "header outside ASCII": (line(), (HOST, b"a: \xe9", LENGTH)),
    "identity": (line(), (HOST, b"Content-Encoding: identity ", LENGTH)),
}


@pytest.mark.parametrize("content_type", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize(("first", "headers"), VALID.values(), ids=VALID)
@pytest.mark.asyncio(loop_scope="module")
async def test_valid_requests_are_answered(transformer, first, headers, content_type):
    sent = post(
        *headers,
        b"Connection: close",
        line=first,
        body=CHUNKS if b"transfer-encoding" in b"".join(headers).lower() else BODY,
        content_type=content_type,
    )
    ((status, content),) = await responses(transformer, sent)
    assert status == 200, content


@pytest.mark.asyncio(loop_scope="module")
async def test_http_1_0_has_no_chunks(transformer):
    ((status, content),) = await responses(
        transformer, post(HOST, CHUNKED, body=CHUNKS, line=line(version=b"HTTP/1.0"))
    )
    assert status == 400
    assert is_error(content)


@pytest.mark.asyncio(loop_scope="module")
async def test_v2_requests_are_checked_too(transformer):
    body = json.dumps(v2_objects([SAMPLE])).encode()
    head = line(V2_INFER.encode())
    length = b"Content-Length: %d" % len(body)
    sent = post(HOST, length, line=head, body=body) + post(length, line=head, body=body)
    assert [status for status, _ in await responses(transformer, sent)] == [200, 400]
