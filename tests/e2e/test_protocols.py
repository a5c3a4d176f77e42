"""Every form of a request gets the score of scikit-learn from a real MLServer."""

import pytest

from tests.support.in_process_transformer import in_process_transformer
from tests.support.request_forms import FORMS


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("count", [1, 32])
async def test_every_form_of_a_request_gives_the_score_of_scikit_learn(
    form, count, mlserver, trained_bundle, sklearn_reference
):
    bundle = sklearn_reference.bundle
    rows = [dict(row) for row in bundle.reference.candidates[:count]]
    predictor = f"127.0.0.1:{mlserver.http_port}"
    async with in_process_transformer(trained_bundle, predictor, "--predictor_protocol=v2") as transformer:
        answer = await form(transformer, rows, bundle.signature)
    assert answer.probabilities == pytest.approx(sklearn_reference.probabilities(rows), abs=1e-12)
    assert answer.positive == [probability >= bundle.threshold for probability in answer.probabilities]
    assert answer.version == bundle.version
