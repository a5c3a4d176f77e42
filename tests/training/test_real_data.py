"""Results on the real campus data; skipped without the data."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.support.paths import ROOT
from training.candidates import PLACEMENT, SAMPLE, SIGNATURE
from training.cross_validation import CrossValidation
from training.data import Dataset, read_dataset
from training.encoding import encode, fit_vectorizer
from training.estimators import ESTIMATORS
from training.generator import generate
from training.selection import select
from training.statistics import Statistics, describe

DATA = Path(os.environ.get("PLACEMENT_DATA", ROOT.parent / "shared" / "data"))

pytestmark = pytest.mark.skipif(
    not (DATA / "Train_Data.csv").is_file(),
    reason=f"the real candidates are not at {DATA}; PLACEMENT_DATA names their directory",
)


@pytest.fixture(scope="module")
def real() -> Dataset:
    return read_dataset(DATA / "Train_Data.csv", PLACEMENT)


def test_the_training_data_are_read(real):
    assert len(real.candidates) == 670
    assert np.mean([label == "Placed" for label in real.labels]) == pytest.approx(0.655, abs=0.001)
    assert real.ignored == ()


def test_the_committed_statistics_are_those_of_the_real_candidates(real):
    assert describe(real) == Statistics.committed()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_forest_trained_on_generated_candidates_predicts_the_real_ones(real, seed):
    generated = generate(5000, seed)
    vectorizer = fit_vectorizer(SIGNATURE)
    forest = ESTIMATORS["forest-100"].fit(encode(vectorizer, generated.candidates), generated.labels)
    answers = forest.predict_proba(encode(vectorizer, real.candidates))[:, 1] >= 0.5
    assert np.mean(answers == (np.array(real.labels) == "Placed")) > 0.90


def test_the_chosen_model_is_right_about_95_percent_of_unseen_candidates(real):
    features = encode(fit_vectorizer(SIGNATURE), real.candidates)
    chosen, _ = select("auto", features, real.labels, PLACEMENT)
    assert chosen.accuracy is not None
    assert chosen.accuracy >= 0.95
    # Other orders of the candidates, and so other folds, give the same result.
    accuracies = []
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(real.labels))
        labels = np.array(real.labels)[order].tolist()
        validation = CrossValidation(features.iloc[order], labels, PLACEMENT)
        accuracies += [trial.accuracy for trial in validation.trials([chosen.estimator])]
    assert np.mean([one for one in accuracies if one is not None]) >= 0.95


def test_the_tutorials_forest_gives_the_tutorials_candidate_about_90_percent(real):
    vectorizer = fit_vectorizer(SIGNATURE)
    forest = ESTIMATORS["tutorial"].fit(encode(vectorizer, real.candidates), real.labels)
    assert forest.predict_proba(encode(vectorizer, [SAMPLE]))[0, 1] == pytest.approx(0.90, abs=0.03)
