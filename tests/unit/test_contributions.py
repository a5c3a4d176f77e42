"""Contributions are the Shapley values of the raw fields."""

import warnings
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.explained_model import (
    BACKGROUND,
    CANDIDATE,
    SIGNATURE,
    WEIGHTS,
    ExplainedModel,
    interacting,
)
from transformer.bundle.explanation import Contributions
from transformer.bundle.signature import Category, Number, Signature
from transformer.explanation.contributions import MIN_PAIRS, contributions, join, rows_to_score

MANY_ROWS = 65_536
#: Numbers differ from every background row, so all coalitions of 10 fields are 1,024 rows for each.
WIDE = Signature(fields=tuple(Number(name=f"n{order}", minimum=0, maximum=9) for order in range(10)))
WIDE_BACKGROUND = tuple({f"n{order}": float(row) for order in range(10)} for row in (1, 2, 3))
WIDE_CANDIDATE = {f"n{order}": 5.0 + order / 10 for order in range(10)}


def wide_model(row: dict[str, Any]) -> float:
    values = np.array([row[f"n{order}"] for order in range(10)])
    return float(1 / (1 + np.exp(-(values[:5] * values[5:]).sum() / 30 + 2 + np.sin(values).sum() / 5)))


def explain(model: ExplainedModel, candidate: dict[str, Any], max_rows: int = MANY_ROWS) -> Contributions:
    return model.run(contributions(model.game, model.encode(candidate), max_rows))


def by_all_orders(model: ExplainedModel, candidate: dict[str, Any]) -> dict[str, float]:
    """Average each field's marginal contribution over all orders of the fields, by the definition."""
    names = model.signature.names
    orders = list(permutations(names))
    values = dict.fromkeys(names, 0.0)
    for background, weight in zip(model.background, model.weights, strict=True):
        for order in orders:
            row = dict(background)
            before = model.probability(row)
            for name in order:
                row[name] = candidate[name]
                after = model.probability(row)
                values[name] += weight * (after - before) / len(orders)
                before = after
    return values


@st.composite
def candidates(draw: st.DrawFn) -> dict[str, Any]:
    """Draw candidates, whose fields are often those of a background row."""
    candidate = {}
    for field in SIGNATURE.fields:
        values = [row[field.name] for row in BACKGROUND]
        values += field.categories if isinstance(field, Category) else [draw(st.floats(0, 100))]
        candidate[field.name] = draw(st.sampled_from(values))
    return candidate


@given(candidate=candidates())
def test_contributions_are_the_average_over_all_orders(candidate):
    model = ExplainedModel()
    found = explain(model, candidate)
    expected = by_all_orders(model, candidate)
    assert found.fields == SIGNATURE.names
    assert dict(zip(found.fields, found.values[0], strict=True)) == pytest.approx(expected, abs=1e-12)
    assert found.exact.tolist() == [True]
    assert not found.standard_errors.any()
    baseline = sum(w * interacting(row) for w, row in zip(WEIGHTS, BACKGROUND, strict=True))
    assert found.baseline[0] == pytest.approx(baseline, abs=1e-12)


@given(candidate=candidates(), max_rows=st.sampled_from([1, 20, MANY_ROWS]))
def test_baseline_and_contributions_add_up_to_the_probability(candidate, max_rows):
    found = explain(ExplainedModel(), candidate, max_rows)
    assert found.baseline[0] + found.values.sum() == pytest.approx(interacting(candidate), abs=1e-9)


def test_contributions_are_those_of_shap(monkeypatch):
    # To compile takes longer than these few rows.
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from shap.explainers import Exact
        from shap.maskers import Independent

    uniform = ExplainedModel(weights=(1 / 3, 1 / 3, 1 / 3))
    codes = {field.name: list(field.categories) for field in SIGNATURE.fields if isinstance(field, Category)}

    def coded(candidate):
        return [codes[key].index(value) if key in codes else value for key, value in candidate.items()]

    def score(rows):
        named = [dict(zip(SIGNATURE.names, row, strict=True)) for row in rows]
        return np.array(
            [interacting({k: codes[k][int(v)] if k in codes else v for k, v in row.items()}) for row in named]
        )

    background = np.array([coded(row) for row in BACKGROUND], float)
    for candidate in (CANDIDATE, {**CANDIDATE, "hsc_s": "Arts", "ssc_p": 12.5}, {**CANDIDATE, "gender": "F"}):
        theirs = Exact(score, Independent(background))(np.array([coded(candidate)], float))
        ours = explain(uniform, candidate)
        np.testing.assert_allclose(ours.values, theirs.values, rtol=0, atol=1e-12)
        np.testing.assert_allclose(ours.baseline, theirs.base_values, rtol=0, atol=1e-12)


def test_a_field_that_the_model_ignores_contributes_nothing():
    model = ExplainedModel(lambda row: interacting({**row, "gender": "F"}))
    values = dict(zip(SIGNATURE.names, explain(model, CANDIDATE).values[0], strict=True))
    assert values.pop("gender") == 0
    assert all(values.values())


def test_fields_with_equal_effects_contribute_equally():
    def symmetric(row):
        return (row["ssc_p"] * row["mba_p"] + row["ssc_p"] + row["mba_p"]) / 10_300

    both = [{**row, "ssc_p": row["mba_p"]} for row in BACKGROUND]
    model = ExplainedModel(symmetric, background=both)
    values = dict(zip(SIGNATURE.names, explain(model, {**CANDIDATE, "ssc_p": 70.0}).values[0], strict=True))
    assert values["ssc_p"] == pytest.approx(values["mba_p"], abs=1e-12)
    assert values["ssc_p"] > 0


def test_equal_fields_drop_out_so_exact_values_take_few_rows():
    model = ExplainedModel()
    # The candidate differs from the background rows in 4, 1 and 3 fields.
    assert rows_to_score(model.game, model.encode(CANDIDATE), MANY_ROWS) == 2**4 + 2**1 + 2**3
    explain(model, CANDIDATE)
    assert model.scored == 2**4 + 2**1 + 2**3


def test_a_candidate_that_is_a_background_row_differs_from_the_others_only():
    model = ExplainedModel(background=BACKGROUND[:1], weights=[1.0])
    found = explain(model, BACKGROUND[0])
    assert not found.values.any()
    assert found.baseline[0] == interacting(BACKGROUND[0])
    assert model.scored == 1


def test_an_ignored_category_is_a_field_without_a_value():
    def ignoring(row):
        return 0.25 if row["hsc_s"] is None else 0.5

    model = ExplainedModel(ignoring)
    row = model.encode(CANDIDATE)
    row[model.game.field_of == 0] = 0.0
    found = model.run(contributions(model.game, row, MANY_ROWS))
    assert found.values[0].tolist() == pytest.approx([-0.25, 0, 0, 0], abs=1e-15)


@pytest.fixture(scope="module")
def wide() -> ExplainedModel:
    return ExplainedModel(wide_model, WIDE, WIDE_BACKGROUND)


@pytest.mark.parametrize("max_rows", [500, 1_000, 2_500, 3_071])
def test_beyond_the_budget_contributions_are_estimates_with_standard_errors(wide, max_rows):
    exact, estimated = explain(wide, WIDE_CANDIDATE), explain(wide, WIDE_CANDIDATE, max_rows)
    assert (exact.exact[0], estimated.exact[0]) == (True, False)
    errors = np.abs(estimated.values - exact.values)
    assert errors.max() > 0
    assert (errors <= 5.5 * estimated.standard_errors + 1e-12).all()


def test_standard_errors_shrink_with_the_budget(wide):
    few, many = (explain(wide, WIDE_CANDIDATE, rows).standard_errors.mean() for rows in (200, 2_500))
    assert 0 < many < few


def test_a_standard_error_is_the_deviation_of_the_estimates(wide, monkeypatch):
    def estimates(seed):
        monkeypatch.setattr("transformer.explanation.contributions._SEED", seed)
        return explain(wide, WIDE_CANDIDATE, 700)

    found = [estimates(seed) for seed in range(60)]
    deviation = np.std([one.values[0] for one in found], axis=0)
    typical = np.sqrt(np.mean([one.standard_errors[0] ** 2 for one in found], axis=0))
    np.testing.assert_allclose(typical, deviation, rtol=0.35)


@pytest.mark.parametrize("max_rows", [200, 1_000, 2_500, 3_071, 3_072, MANY_ROWS])
def test_estimates_stay_within_the_budget(wide, max_rows):
    before = wide.scored
    explain(wide, WIDE_CANDIDATE, max_rows)
    assert wide.scored - before == rows_to_score(wide.game, wide.encode(WIDE_CANDIDATE), max_rows)
    assert wide.scored - before <= max_rows
    assert (wide.scored - before == 3 * 2**10) == (max_rows >= 3 * 2**10)


def test_the_smallest_budget_still_gives_standard_errors(wide):
    assert rows_to_score(wide.game, wide.encode(WIDE_CANDIDATE), 1) == 3 * (2 + 2 * MIN_PAIRS * 9)
    assert (explain(wide, WIDE_CANDIDATE, 1).standard_errors > 0).all()


def test_background_rows_that_need_few_rows_leave_theirs_to_the_others():
    near = {**WIDE_CANDIDATE, "n0": 1.0}
    model = ExplainedModel(wide_model, WIDE, [near, WIDE_BACKGROUND[1]], [0.5, 0.5])
    # 2 + 1,024 rows: half of the budget each would not be enough for the second background row.
    assert explain(model, WIDE_CANDIDATE, 1_026).exact[0]
    assert not explain(model, WIDE_CANDIDATE, 1_025).exact[0]


def test_equal_requests_get_equal_estimates(wide):
    one, other = (explain(wide, WIDE_CANDIDATE, 500) for _ in range(2))
    np.testing.assert_array_equal(one.values, other.values)


def test_rows_of_coalitions_equal_the_encoding_of_their_raw_values():
    model = ExplainedModel()
    row = model.encode({**CANDIDATE, "ssc_p": -0.0})
    random = np.random.default_rng(0)
    coalitions = random.integers(2, size=(64, 4)).astype(bool)
    background = random.integers(3, size=64)
    made = model.game.rows(row, coalitions, background)
    for encoded, coalition, index in zip(made, coalitions, background, strict=True):
        raw = {
            name: ({**CANDIDATE, "ssc_p": 0.0} if inside else BACKGROUND[index])[name]
            for name, inside in zip(SIGNATURE.names, coalition, strict=True)
        }
        assert encoded.tobytes() == model.vectorizer.transform([raw])[0].tobytes()


def test_contributions_of_several_candidates_join_in_order():
    model = ExplainedModel()
    found = [explain(model, one) for one in (CANDIDATE, BACKGROUND[0])]
    joined = join(found)
    assert joined.values.shape == (2, 4)
    np.testing.assert_array_equal(joined.values[1], found[1].values[0])
    assert joined.exact.tolist() == [True, True]
