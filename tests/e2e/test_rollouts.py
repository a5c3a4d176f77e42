"""No candidate is scored by a model through another version's encoding, whatever is rolled out when.

There are real processes and steady load over V1, V2 and gRPC. Every answer is compared with the score of the
version that it names. `make soak` runs the same for longer, with every pair of versions.
"""

import pytest

from tests.soak.rollouts import SITUATIONS, control_experiment

#: The pair that is hardest to get right: its encodings have the same width, so nothing crashes.
SILENT_KILLER = "category_renamed"
#: Situations that only `make soak` has. Other tests cover them, or only the protocol of the hop differs.
ONLY_LONG = {
    "apply_behind_services",
    "apply_out_predictor_late",
    "apply_out_transformer_late",
    "new_only_candidates_in_a_rollout",
    "rollout_over_grpc",
    "rolling_update",
    "unknown_models",
}
SHORT = [(SILENT_KILLER, situation) for situation in SITUATIONS if situation.__name__ not in ONLY_LONG]
#: Requests between changes. A rollout takes so long that there are thousands.
SOME = 60


@pytest.mark.parametrize(
    ("name", "situation"), SHORT, ids=[f"{name}-{situation.__name__}" for name, situation in SHORT]
)
async def test_no_answer_is_wrong_in(name, situation, version_pair, tmp_path):
    outcome = await situation(version_pair(name), tmp_path, SOME)
    print(f"\n{situation.__name__}, {name}: {outcome}")
    assert outcome.tally.wrong == []
    assert outcome.tally.mixed == []
    assert outcome.unexpected == []


async def test_the_documented_transformer_gives_wrong_answers_without_an_error(version_pair, tmp_path):
    wrong = await control_experiment(version_pair(SILENT_KILLER), tmp_path, 3 * SOME)
    print(f"\ncontrol experiment, {SILENT_KILLER}: {wrong} wrong")
    assert wrong > 0
