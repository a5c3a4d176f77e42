"""Generated candidates: the same for the same seed, valid, and distributed as the statistics say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.candidates import PLACEMENT, SIGNATURE
from training.data import DataError
from training.generator import generate
from training.statistics import Statistics, describe
from transformer.signature import Number


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 200), seed=st.integers(0, 2**32))
def test_generated_candidates_are_repeatable_and_valid(rows, seed):
    dataset = generate(rows, seed)
    assert dataset == generate(rows, seed)
    assert len(dataset.candidates) == len(dataset.labels) == rows
    for candidate, label in zip(dataset.candidates, dataset.labels, strict=True):
        assert tuple(candidate) == SIGNATURE.names
        assert label in PLACEMENT.classes
        for field in SIGNATURE.fields:
            if isinstance(field, Number):
                assert field.minimum <= candidate[field.name] <= field.maximum
            else:
                assert candidate[field.name] in field.categories


def test_another_seed_gives_other_candidates():
    assert generate(50, 1).candidates != generate(50, 2).candidates
    assert generate(50, 1).sha256 != generate(50, 2).sha256


def test_generated_candidates_have_the_statistics_that_they_are_made_from():
    expected, found = Statistics.committed(), describe(generate(20_000))
    for cell, drawn in zip(expected.cells, found.cells, strict=True):
        assert (cell.label, cell.given) == (drawn.label, drawn.given)
        assert drawn.share == pytest.approx(cell.share, abs=0.01)
        for name, mean in cell.means.items():
            # Cutting off at 100 % moves the means of the widest distributions a little.
            assert drawn.means[name] == pytest.approx(mean, abs=1.3)
        np.testing.assert_allclose(drawn.correlations, cell.correlations, atol=0.12)
        for name, frequencies in cell.frequencies.items():
            assert drawn.frequencies[name] == pytest.approx(frequencies, abs=0.05)


def test_no_rows_is_an_error():
    with pytest.raises(DataError, match="rows must be at least 1, got 0"):
        generate(0)
