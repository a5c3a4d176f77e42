"""Whatever happens to the predictor, to the way to it and to clients: real processes, each kind once.

`make soak` runs all of them again and again, in another order each time.
"""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator

import pytest

from tests.soak.faults import CLIENTS, FAULTS, Fault
from tests.soak.outages import Record, outages, unexpected
from tests.support import faulty_proxy as proxy
from tests.support.faulty_proxy import FaultyProxy
from tests.support.load import NO_ANSWER, TRY_AGAIN, Tally

#: What the long form has beside: to the transformer, each is another way to drop a call, to answer what is no
#: probability, or to take longer.
ONLY_LONG = {
    "resets", "429", "502", "504", "500 while stopping",
    "is late, in time", "answers twice", "400", "500",
    "a candidate too few", "a candidate too many", "no probabilities", "JSON that is cut off",
}  # fmt: skip
SHORT = [fault for fault in FAULTS if fault.name not in ONLY_LONG]


@pytest.fixture
def dice():
    """The same in every run, and other tests' dice as they were."""
    state = random.getstate()
    random.seed(1)
    yield
    random.setstate(state)


async def test_each_fault_is_answered_as_it_should_be_passes_and_leaves_nothing_behind(pair, tmp_path, dice):
    survived = await outages(pair, tmp_path, 100, SHORT)
    print(f"\n{survived.record}")
    assert survived.unexpected == []
    assert survived.tally.wrong == []
    for fault in (*SHORT, *CLIENTS):
        assert survived.record.faults[fault.name]["met"] >= fault.few, fault.name


# The proof is worth as much as its parts.


@pytest.mark.parametrize("status", ["500", "502", "503", "504", f"{NO_ANSWER} TimeoutError"])
def test_a_status_that_a_fault_does_not_excuse_is_told(status):
    fault = Fault("hiccups", lambda _: None, frozenset({TRY_AGAIN}))
    during, after = Tally(), Tally()
    during.failed[TRY_AGAIN] += 3
    assert unexpected(fault, during, after) == []
    during.failed[f"{status} and why"] += 1
    (told,) = unexpected(fault, during, after)
    assert told == f"hiccups, during it: {{'{status} and why': 1}}"
    after.failed[TRY_AGAIN] += 1
    assert unexpected(fault, during, after)[1] == f"hiccups, after it: {{'{TRY_AGAIN}': 1}}"


def test_the_record_counts_each_request_once_by_its_status():
    tally = Tally(faults={"wrong": ["one"], "mixed": ["another"]})
    tally.answered["v1"] += 4
    tally.failed.update({TRY_AGAIN: 3, "502 bad": 2, f"{NO_ANSWER} TimeoutError": 1})
    tally.took("200", 1.25)
    tally.took(TRY_AGAIN, 0.5)
    tally.took(TRY_AGAIN, 0.25)
    record = Record()
    record.count("hiccups", 7, tally)
    record.add(record)
    assert "in seconds, by status: 200 1.2, 503 0.5." in str(record)
    (row,) = [line for line in str(record).splitlines() if line.startswith("| hiccups")]
    assert row == "| hiccups | 2 | 14 | 20 | 8 | 0 | 0 | 0 | 4 | 6 | 0 | 4 | 2 |"
    assert json.loads(json.dumps(record.facts()))["faults"]["hiccups"]["502"] == 4


BODY = json.dumps({"outputs": [{"shape": [2, 2], "data": [0.25, 0.75, 0.5, 0.5]}]}).encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
ASKED = b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}"
VERIFIES = b'POST / HTTP/1.1\r\ncontent-length: 16\r\n\r\n{"parameters":1}'


@pytest.fixture
async def faulty() -> AsyncIterator[FaultyProxy]:
    """In front of what answers anything with the same."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(EOFError, ConnectionResetError):
            while True:
                await proxy.read_message(reader)
                writer.write(ANSWER)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    faulty = FaultyProxy(server.sockets[0].getsockname()[1])
    await faulty.start()
    yield faulty
    await faulty.stop()
    server.close()


async def ask(faulty: FaultyProxy, request: bytes = ASKED) -> bytes:
    """What comes until nothing comes any more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", faulty.port)
    writer.write(request)
    came = b""
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        async with asyncio.timeout(0.2):
            while data := await reader.read(2**16):
                came += data
    writer.close()
    return came


def told(came: bytes) -> object:
    """The body that came, which its head tells the length of."""
    head, _, body = came.partition(b"\r\n\r\n")
    assert int(head.lower().rpartition(b"content-length: ")[2]) == len(body)
    return json.loads(body)


async def test_the_proxy_passes_answers_on_as_they_are_and_counts_calls(faulty):
    assert await ask(faulty) == ANSWER
    assert await ask(faulty, VERIFIES) == ANSWER
    assert (faulty.calls, faulty.spoiled) == (1, 0)


async def test_the_proxy_spoils_answers_to_calls_that_score_and_others_where_told(faulty):
    faulty.spoil = proxy.hangs_up
    assert await ask(faulty) == b""
    assert await ask(faulty, VERIFIES) == ANSWER
    faulty.verifications = True
    assert await ask(faulty, VERIFIES) == b""
    faulty.part = 0.0
    assert await ask(faulty) == ANSWER
    assert faulty.spoiled == 2


@pytest.mark.parametrize(
    ("spoil", "came"),
    [
        (proxy.resets, b""),
        (proxy.breaks_off, ANSWER[: len(ANSWER) // 2]),
        (proxy.never_ends, ANSWER[: len(ANSWER) // 2]),
        (proxy.comes_twice, ANSWER * 2),
        (proxy.is_late(0.01), ANSWER),
    ],
    ids=["resets", "breaks off", "never ends", "twice", "late"],
)
async def test_what_the_proxy_sends_instead_of_an_answer(spoil, came, faulty):
    faulty.spoil = spoil
    assert await ask(faulty) == came


async def test_the_proxy_sends_other_contents_as_whole_answers(faulty):
    faulty.spoil = proxy.of_another_length(-1)
    assert told(await ask(faulty)) == {"outputs": [{"shape": [1, 2], "data": [0.25, 0.75]}]}
    faulty.spoil = proxy.of_another_length(1)
    assert told(await ask(faulty))["outputs"][0]["data"] == [0.25, 0.75, 0.5, 0.5, 0.25, 0.75]
    faulty.spoil = proxy.has_nan
    assert b'"data": [NaN, 0.75' in await ask(faulty)
    faulty.spoil = proxy.has_status(503, "busy")
    assert (await ask(faulty)).startswith(b"HTTP/1.1 503 ")
    faulty.spoil = proxy.is_garbage
    assert len(await ask(faulty)) == len(ANSWER)


async def test_the_proxy_refuses_connections_until_it_is_started_again(faulty):
    await faulty.stop()
    with pytest.raises(ConnectionRefusedError):
        await ask(faulty)
    await faulty.start()
    assert await ask(faulty) == ANSWER
