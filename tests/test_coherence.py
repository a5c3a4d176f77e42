"""No candidate is scored by a model through another version's encoding, whatever is rolled out when.

Real processes, steady load over V1, V2 and gRPC; every answer is compared with the score that the version
that it claims gives in this process. `make soak` runs the same for longer.
"""

import functools
from collections.abc import Callable

import pytest

from tests.coherence import SITUATIONS, control_experiment, rollout_and_rollback
from tests.pairs import PAIRS, Pair, make_pair

#: As wide as before, so that nothing crashes: whoever gets this one right gets them all right.
SILENT_KILLER = "category_renamed"
#: The short form: the silent killer in every situation, the others in the one that operators meet.
SHORT = [(SILENT_KILLER, situation) for situation in SITUATIONS] + [
    (name, rollout_and_rollback) for name in PAIRS if name != SILENT_KILLER
]


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Makes a pair of versions when it is first asked for."""
    storage = tmp_path_factory.mktemp("pairs")
    return functools.cache(lambda name: make_pair(name, storage))


@pytest.mark.parametrize(
    ("name", "situation"), SHORT, ids=[f"{name}-{situation.__name__}" for name, situation in SHORT]
)
async def test_no_answer_is_wrong(name, situation, pair_of, tmp_path):
    pair = pair_of(name)
    outcome = await situation(pair, tmp_path)
    print(f"\n{situation.__name__}, {pair.name}: {outcome}")
    assert outcome.tally.wrong == []
    assert outcome.unexpected == []


async def test_the_documented_transformer_gives_wrong_answers_without_a_word(pair_of, tmp_path):
    wrong = await control_experiment(pair_of(SILENT_KILLER), tmp_path)
    print(f"\ncontrol experiment, {SILENT_KILLER}: {wrong} wrong")
    assert wrong > 0
