"""No candidate is scored through another version's encoding, whatever the cluster is doing meanwhile.

`make soak ARGS='--target cluster'` runs the same situations for longer, with every pair of versions.
"""

import pytest

from tests.soak.cluster import SITUATIONS, ClusterService, ClusterSituation

#: Requests between changes. A change takes so long that there are hundreds.
SOME = 60


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.__name__)
async def test_no_answer_is_wrong_in(situation: ClusterSituation, service: ClusterService) -> None:
    outcome = await situation(service, SOME)
    print(f"\n{situation.__name__}: {outcome}")
    assert outcome.tally.wrong == []
    assert outcome.tally.mixed == []
    assert outcome.unexpected == []
