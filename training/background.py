"""Background rows of explanations: artificial candidates, whose mean prediction is that of the training data.

An explanation compares a candidate with these rows. Like reference rows they are no real people: each field's
values come from different candidates, and numbers are rounded to three significant digits. Each field by
itself has the distribution of the training data; the fields are independent of each other.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.feature_extraction import DictVectorizer

from training.candidates import Candidate
from training.cross_validation import Floats
from training.encoding import encode
from training.estimators import SEED, Estimator, scores_of
from training.reference import are_real, rounded
from transformer.bundle.format import Background
from transformer.bundle.signature import Signature
from transformer.bundle.target import Target

#: Number of background rows. The rows to score for an explanation are proportional to it.
ROWS = 32
#: Sets of rows that are drawn; the set whose mean prediction is nearest to the training data's is kept.
DRAWS = 16
#: Largest exponent of `tilted_weights`, where one row has practically all the weight.
MAX_TILT = 500.0


def make_background(
    signature: Signature,
    candidates: Sequence[Candidate],
    features: pd.DataFrame,
    vectorizer: DictVectorizer,
    model: Estimator,
    target: Target,
) -> Background:
    """Draw artificial candidates, and weight them.

    Parameters
    ----------
    candidates, features
        The training data, raw and encoded.
    """
    random = np.random.default_rng(SEED)
    mean = _background_scores(model, features, target).mean()
    draws = [_draw(signature, candidates, random) for _ in range(DRAWS)]
    draws = [rows for rows in draws if not any(are_real(signature, candidates, rows))] or draws
    scores = [_background_scores(model, encode(vectorizer, rows), target) for rows in draws]
    nearest = min(range(len(draws)), key=lambda number: abs(scores[number].mean() - mean))
    weights = tilted_weights(scores[nearest], mean)
    return Background(candidates=tuple(draws[nearest]), weights=tuple(weights.tolist()))


def _background_scores(model: Estimator, features: pd.DataFrame, target: Target) -> Floats:
    """Return the score whose mean the background rows keep.

    For many classes it is the probability of the first class or, without probabilities, whether it is the
    first class: one set of weights cannot keep the means of all.
    """
    values, probabilities = target.answers(scores_of(model, features, target))
    return target.explained(values, probabilities, 0)


def tilted_weights(scores: Floats, mean: float) -> Floats:
    """Return the weights with the largest entropy whose weighted mean of the scores is `mean`.

    They are proportional to ``exp(tilt · score)`` for one tilt. If no weights have this mean, the nearest
    row gets practically all the weight.
    """
    span = float(np.ptp(scores)) or 1.0
    low, high = -MAX_TILT, MAX_TILT
    weights = np.full(len(scores), 1 / len(scores))
    while high - low > MAX_TILT * np.finfo(float).eps and weights @ scores != mean:
        tilt = (low + high) / 2
        exponents = tilt * (scores - mean) / span
        weights = np.exp(exponents - exponents.max())
        weights /= weights.sum()
        low, high = (tilt, high) if weights @ scores < mean else (low, tilt)
    return weights


def _draw(
    signature: Signature, candidates: Sequence[Candidate], random: np.random.Generator
) -> list[Candidate]:
    """Draw rows by Latin hypercube sampling: of each field `ROWS` values at equal distances, in any order."""
    places = ((np.arange(ROWS) + 0.5) / ROWS * len(candidates)).astype(int)
    columns = []
    for field in signature.fields:
        ordered = sorted(candidate[field.name] for candidate in candidates)
        columns.append([rounded(field, ordered[place]) for place in random.permutation(places)])
    return [dict(zip(signature.names, values, strict=True)) for values in zip(*columns, strict=True)]
