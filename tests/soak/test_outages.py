"""The record of outages counts each request once, and names every response that a fault does not excuse."""

import contextlib
import json

import pytest

from tests.soak.faults import Fault
from tests.soak.outages import Record, unexpected
from tests.support.async_clients import NO_ANSWER, TRY_AGAIN
from tests.support.load import Tally


@pytest.mark.parametrize("status", ["500", "502", "503", "504", f"{NO_ANSWER} TimeoutError"])
def test_a_status_that_a_fault_does_not_allow_is_reported(status):
    fault = Fault("hiccups", lambda _: contextlib.nullcontext(), frozenset({TRY_AGAIN}))
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
