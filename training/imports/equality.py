"""Comparison of a version with the original model: both must predict the same, to the last bit."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import replace

import joblib
import numpy as np
import pandas as pd

from training.candidates import Candidate
from training.estimators import output_of
from training.imports.pair import Pair
from transformer.bundle.candidates import Rows
from transformer.bundle.encoder import Encoder
from transformer.bundle.format import Vectorizer
from transformer.bundle.signature import Signature
from transformer.bundle.target import Scores, Target

#: Largest difference between scores for a sparse and for a dense matrix, which are added up in another
#: order; of numbers, it is a share of the largest one.
SPARSE_ROUNDING = 1e-12


class UnequalPredictionsError(Exception):
    """A version that predicts something else than the original; the message says how different."""


def answered_otherwise(pair: Pair, candidates: Sequence[Candidate], target: Target) -> int:
    """Return for how many candidates the original's `predict` does not follow its probabilities."""
    if not target.has_probabilities:
        return 0
    features = pair.vectorizer.transform(candidates)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_probability, by_predict = (
            one.answers(one.read(output_of(pair.model, features, one), len(candidates)))[0]
            for one in (target, replace(target, has_probabilities=False))
        )
    return int(np.count_nonzero(by_probability != by_predict))


def compare(
    pair: Pair,
    content: bytes,
    vectorizer: Vectorizer,
    signature: Signature,
    candidates: Sequence[Candidate],
    target: Target,
) -> Scores:
    """Return a version's scores, after a comparison with the original's.

    The version's rows are encoded as the transformer encodes them, and scored by the model as it is in the
    file, with and without names of columns.

    Parameters
    ----------
    content
        Content of the version's model file.

    Raises
    ------
    UnequalPredictionsError
        If a score that callers get differs.
    """
    rows = Encoder(vectorizer, signature).encode(Rows(list(candidates), "rows"))
    model = joblib.load(io.BytesIO(content))
    named = pd.DataFrame(rows, columns=vectorizer.feature_names)
    original = pair.vectorizer.transform(candidates)
    with warnings.catch_warnings():
        # Plain arrays have no names, which scikit-learn warns about.
        warnings.simplefilter("ignore")
        expected, by_name, given = (
            target.read(output_of(one, features, target), len(candidates))
            for one, features in ((pair.model, original), (model, named), (model, rows))
        )
    differences = np.max(
        [np.abs(target.fingerprint(one) - target.fingerprint(expected)) for one in (by_name, given)],
        axis=(0, 2),
    )
    scale = np.abs(expected).max() if target.kind == "regression" else 1.0
    differing = differences > (SPARSE_ROUNDING * scale if pair.vectorizer.sparse else 0.0)
    if differing.any():
        dtype = np.dtype(pair.vectorizer.dtype).name
        reason = (
            "" if dtype == "float64" else f"; its DictVectorizer makes {dtype}, and the transformer float64"
        )
        is_number = target.kind == "regression" or target.has_probabilities
        size = f", by up to {differences.max():.2g}" if is_number else ""
        raise UnequalPredictionsError(
            "the version would not predict the same as the original: "
            f"{np.sum(differing):,} of {len(candidates):,} rows differ{size}{reason}"
        )
    return given
