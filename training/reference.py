"""Reference rows: candidates whose probabilities identify a model.

The candidates are artificial. A bundle is copied to every pod that serves it, so it must not hold real
people: each field's value comes from another candidate, and numbers are rounded to three significant digits.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction import DictVectorizer

from training.candidates import Candidate
from training.encoding import encode
from training.estimators import SEED, Classifier
from transformer.bundle.format import Reference
from transformer.bundle.signature import Category, Number, RawField, Signature

#: Number of reference rows, before rows are added for missing categories.
ROWS = 32
#: Number of artificial candidates that the reference rows are chosen from.
POOL_SIZE = 512


def make_reference(
    signature: Signature,
    candidates: Sequence[Candidate],
    vectorizer: DictVectorizer,
    model: Classifier,
    positive_column: int,
) -> Reference:
    """Choose artificial candidates that spread over the probabilities and cover every category."""
    pool = _artificial_candidates(signature, candidates)
    order = np.argsort(model.predict_proba(encode(vectorizer, pool))[:, positive_column], kind="stable")
    spread = np.linspace(0, len(order) - 1, min(ROWS, len(order))).round().astype(int)
    chosen = [pool[index] for index in order[spread]]
    for field in signature.fields:
        for category in field.categories if isinstance(field, Category) else ():
            if all(candidate[field.name] != category for candidate in chosen):
                chosen.append({**chosen[len(chosen) // 2], field.name: category})
    probabilities = model.predict_proba(encode(vectorizer, chosen))[:, positive_column]
    return Reference(candidates=tuple(chosen), probabilities=tuple(probabilities.tolist()))


def _artificial_candidates(signature: Signature, candidates: Sequence[Candidate]) -> list[Candidate]:
    random = np.random.default_rng(SEED)
    columns = []
    for field in signature.fields:
        values = random.integers(len(candidates), size=POOL_SIZE)
        columns.append([rounded(field, candidates[index][field.name]) for index in values])
    made = [dict(zip(signature.names, values, strict=True)) for values in zip(*columns, strict=True)]
    # With few fields, every combination can equal a real candidate; then nothing else is left to use.
    real = are_real(signature, candidates, made)
    return [candidate for candidate, is_real in zip(made, real, strict=True) if not is_real] or made


def are_real(signature: Signature, candidates: Sequence[Candidate], made: Sequence[Candidate]) -> list[bool]:
    """Return True for each artificial candidate that equals a real one."""
    real = {tuple(candidate[name] for name in signature.names) for candidate in candidates}
    return [tuple(candidate[name] for name in signature.names) in real for candidate in made]


def rounded(field: RawField, value: str | float) -> str | float:
    """Return a number with three significant digits, within the field's range; a category unchanged."""
    if isinstance(field, Number):
        least, most = field.range
        return min(max(float(f"{value:.3g}"), least), most)
    return value
