"""Faults of the predictor, of the network to it, and of clients, with real processes, each once.

`make soak` repeats all of them in random order.
"""

import random

import pytest

from tests.soak.faults import CLIENTS, FAULTS
from tests.soak.outages import outages

#: Faults that only `make soak` has. To the transformer they are the same as others: a dropped call, an
#: invalid response, or a slow one.
ONLY_LONG = {
    "resets", "429", "502", "504", "500 while stopping",
    "is late, in time", "answers twice", "400", "500",
    "a candidate too few", "a candidate too many", "no probabilities", "JSON that is cut off",
}  # fmt: skip
SHORT = [fault for fault in FAULTS if fault.name not in ONLY_LONG]


@pytest.fixture
def dice():
    """Seed the random generator, and restore it for other tests."""
    state = random.getstate()
    random.seed(1)
    yield
    random.setstate(state)


async def test_every_fault_gets_allowed_statuses_and_leaves_nothing_behind(pair, tmp_path, dice):
    survived = await outages(pair, tmp_path, 100, SHORT)
    print(f"\n{survived.record}")
    assert survived.unexpected == []
    assert survived.tally.wrong == []
    for fault in (*SHORT, *CLIENTS):
        assert survived.record.faults[fault.name]["met"] >= fault.few, fault.name
