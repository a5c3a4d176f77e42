"""Whatever happens to the predictor, to the way to it and to clients: real processes, each kind once.

`make soak` runs all of them again and again, in another order each time.
"""

import random

import pytest

from tests.soak.faults import CLIENTS, FAULTS
from tests.soak.outages import outages

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


async def test_every_fault_gets_allowed_statuses_and_leaves_nothing_behind(pair, tmp_path, dice):
    survived = await outages(pair, tmp_path, 100, SHORT)
    print(f"\n{survived.record}")
    assert survived.unexpected == []
    assert survived.tally.wrong == []
    for fault in (*SHORT, *CLIENTS):
        assert survived.record.faults[fault.name]["met"] >= fault.few, fault.name
