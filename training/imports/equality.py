"""Comparison of a version with the original model: both must predict the same, to the last bit."""

import io
import warnings
from collections.abc import Sequence

import joblib
import numpy as np
import pandas as pd

from training.candidates import Candidate
from training.imports.pair import Pair
from training.selection import Floats
from transformer.bundle.candidates import Rows
from transformer.bundle.encoder import Encoder
from transformer.bundle.format import Vectorizer
from transformer.bundle.signature import Signature

#: Largest difference between predictions for a sparse and for a dense matrix, which are added up in another
#: order.
SPARSE_ROUNDING = 1e-12


class UnequalPredictionsError(Exception):
    """A version that predicts something else than the original; the message says how different."""


def compare(
    pair: Pair,
    content: bytes,
    vectorizer: Vectorizer,
    signature: Signature,
    candidates: Sequence[Candidate],
    column: int,
) -> Floats:
    """Return a version's probabilities in a column, after a comparison with the original's.

    The version's rows are encoded as the transformer encodes them, and scored by the model as it is in the
    file, with and without names of columns.

    Parameters
    ----------
    content
        Content of the version's model file.

    Raises
    ------
    UnequalPredictionsError
        If a probability differs.
    """
    rows = Encoder(vectorizer, signature).encode(Rows(list(candidates), "rows"))
    model = joblib.load(io.BytesIO(content))
    with warnings.catch_warnings():
        # Plain arrays have no names, which scikit-learn warns about.
        warnings.simplefilter("ignore")
        expected = pair.model.predict_proba(pair.vectorizer.transform(candidates))[:, column]
        named = model.predict_proba(pd.DataFrame(rows, columns=vectorizer.feature_names))[:, column]
        given: Floats = model.predict_proba(rows)[:, column]
    differences = np.maximum(np.abs(named - expected), np.abs(given - expected))
    allowed = SPARSE_ROUNDING if pair.vectorizer.sparse else 0.0
    # NaN is unequal, too.
    if not (differences <= allowed).all():
        dtype = np.dtype(pair.vectorizer.dtype).name
        reason = (
            "" if dtype == "float64" else f"; its DictVectorizer makes {dtype}, and the transformer float64"
        )
        raise UnequalPredictionsError(
            "the version would not predict the same as the original: "
            f"{np.sum(~(differences <= allowed)):,} of {len(differences):,} rows differ, by up to "
            f"{np.nanmax(differences):.2g}{reason}"
        )
    return given
