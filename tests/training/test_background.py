"""Training makes background rows: artificial candidates with the mean prediction of the training data."""

from collections import Counter

import numpy as np
import pytest

from tests.support.sklearn_reference import SklearnReference
from training.background import ROWS, tilted_weights
from training.candidates import SIGNATURE, Candidate, Task
from training.data import Dataset
from training.generator import generate
from training.train import train
from transformer.bundle.format import Background, Bundle
from transformer.bundle.signature import Category, Number, Signature

DATASET = generate(400)


@pytest.fixture(scope="module", params=["support-vectors", "forest-50"])
def reference(request, tmp_path_factory) -> SklearnReference:
    trained = train(DATASET, storage=tmp_path_factory.mktemp("models"), estimator=request.param)
    return SklearnReference(tmp_path_factory.getbasetemp() / trained.uri)


def background_of(bundle: Bundle) -> Background:
    assert bundle.background is not None
    return bundle.background


def test_the_baseline_is_the_mean_prediction_for_the_training_data(reference):
    background = background_of(reference.bundle)
    scores = reference.probabilities(list(background.candidates))
    expected = np.mean(reference.probabilities(DATASET.candidates))
    assert np.dot(background.weights, scores) == pytest.approx(expected, abs=0.01)


def test_every_background_row_counts(reference):
    background = background_of(reference.bundle)
    assert len(background.candidates) == ROWS
    assert sum(background.weights) == pytest.approx(1, abs=1e-9)
    assert min(background.weights) > 0.2 / ROWS
    assert max(background.weights) < 5 / ROWS


def test_no_background_row_is_a_real_candidate(reference):
    real = {tuple(candidate.values()) for candidate in DATASET.candidates}
    assert not real & {tuple(row.values()) for row in background_of(reference.bundle).candidates}


def test_each_field_has_the_distribution_of_the_training_data(reference):
    for field in SIGNATURE.fields:
        real = [candidate[field.name] for candidate in DATASET.candidates]
        made = [row[field.name] for row in background_of(reference.bundle).candidates]
        if isinstance(field, Category):
            shares, counts = Counter(real), Counter(made)
            for category in field.categories:
                assert counts[category] / ROWS == pytest.approx(shares[category] / len(real), abs=1 / ROWS)
        else:
            real_numbers, numbers = np.array(real, float), np.array(made, float)
            assert abs(numbers.mean() - real_numbers.mean()) < 0.1 * real_numbers.std()
            assert 0.85 < numbers.std() / real_numbers.std() < 1.15
            assert all(value == float(f"{value:.3g}") for value in numbers)


def test_background_rows_are_inside_a_narrow_signature(tmp_path):
    # Rounded to three digits, every year would be outside.
    task = Task(
        signature=Signature(
            fields=(
                Number(name="year", minimum=2011.5, maximum=2014.5),
                Category(name="team", categories=("red", "blue")),
            )
        ),
        label="outcome",
        classes=("promoted", "stays"),
        positive_class="promoted",
    )
    random = np.random.default_rng(0)
    years = 2011.5 + 3 * random.random(60)
    candidates: list[Candidate] = [
        {"year": year, "team": ("red", "blue")[random.integers(2)]} for year in years.tolist()
    ]
    labels = [task.classes[int(year < 2013)] for year in years]
    dataset = Dataset(task, candidates, labels, "made here", "0" * 64)
    bundle = train(dataset, storage=tmp_path, name="promotion", estimator="logistic-regression").bundle
    assert len(background_of(bundle).candidates) == ROWS


def test_later_bundles_keep_the_background_of_earlier_versions(tmp_path):
    first = train(DATASET, storage=tmp_path, estimator="logistic-regression")
    second = train(DATASET, storage=tmp_path, estimator="logistic-regression", previous=first.uri).bundle
    assert second.previous[0].background == first.bundle.background


def test_weights_tilt_as_little_as_possible_towards_a_mean():
    scores = np.array([0.1, 0.4, 0.4, 0.9])
    assert tilted_weights(scores, scores.mean()) == pytest.approx([0.25] * 4)
    for mean in (0.11, 0.3, 0.6, 0.89):
        weights = tilted_weights(scores, mean)
        assert (weights.sum(), weights @ scores) == (pytest.approx(1), pytest.approx(mean))
        # Of equal scores none has more weight, and all logarithms lie on a line.
        assert weights[1] == weights[2]
        slopes = np.diff(np.log(weights[[0, 1, 3]])) / np.diff(scores[[0, 1, 3]])
        assert slopes[0] == pytest.approx(slopes[1])


@pytest.mark.parametrize(("mean", "weights"), [(0.95, [0, 0, 1]), (0.05, [1, 0, 0])])
def test_a_mean_out_of_reach_gives_the_nearest_row_all_the_weight(mean, weights):
    assert tilted_weights(np.array([0.1, 0.4, 0.9]), mean) == pytest.approx(weights, abs=1e-6)


def test_equal_scores_get_equal_weights():
    assert tilted_weights(np.full(4, 0.7), 0.7) == pytest.approx([0.25] * 4)
