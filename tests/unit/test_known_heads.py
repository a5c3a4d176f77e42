"""Heads that were parsed before are found by their bytes, and only where nothing else follows the request."""

from typing import Any

import pytest

from transformer.monitoring.monitor import V1_PREDICT
from transformer.server.fast_path import PlainHead
from transformer.server.known_heads import MAX_HEAD_BYTES, MAX_HEADS, KnownHeads

HEAD = b"POST /v1/models/a:predict HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n"


def plain_head(*forwardable: tuple[str, str], body_bytes: int = 2) -> PlainHead:
    def decode(*_: object) -> Any:
        raise NotImplementedError

    return PlainHead(V1_PREDICT, decode, None, [*forwardable], body_bytes)


@pytest.fixture
def known() -> KnownHeads:
    return KnownHeads()


def test_a_head_is_found_with_the_body_behind_it(known):
    head = plain_head()
    known.add(HEAD + b"{}", head)
    assert known.find(HEAD + b"[]") == (head, b"[]")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HEAD,
        HEAD + b"{",
        HEAD + b"{}" + HEAD,
        HEAD.replace(b": a", b": b") + b"{}",
        HEAD[:-2],
        HEAD[1:] + b"{}",
    ],
)
def test_other_data_are_left_to_the_parser(known, data):
    known.add(HEAD + b"{}", plain_head())
    assert known.find(data) is None


@pytest.mark.parametrize(
    ("data", "head"),
    [
        # The parser skips empty lines before a request: these data do not begin with the head.
        (b"\r\n\r\n" + HEAD + b"{}", plain_head()),
        (HEAD + b"{}", plain_head(("authorization", "Bearer a"))),
        (HEAD + b"{}", plain_head(("x-request-id", "7"))),
        (HEAD.replace(b": a", b": " + b"a" * MAX_HEAD_BYTES) + b"{}", plain_head()),
    ],
)
def test_a_head_that_cannot_be_repeated_is_not_kept(known, data, head):
    known.add(data, head)
    assert len(known) == 0


def test_the_number_of_heads_is_limited(known):
    for number in range(MAX_HEADS + 1):
        known.add(HEAD.replace(b": a", b": %d" % number), plain_head())
    assert len(known) == MAX_HEADS
    assert known.find(HEAD.replace(b": a", b": 0") + b"{}") is None
    assert known.find(HEAD.replace(b": a", b": %d" % MAX_HEADS) + b"{}") is not None
