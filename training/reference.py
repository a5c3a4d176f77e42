"""Reference rows: candidates by whose probabilities a model is recognised.

They are made up. A bundle travels to every pod that serves it, so no real person should be found in it: each
field's value is taken from another candidate, and numbers are cut to three digits.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction import DictVectorizer

from training.candidates import Candidate
from training.encoding import encode
from training.estimators import SEED, Classifier
from transformer.bundle.format import Reference
from transformer.bundle.signature import Category, Number, RawField, Signature

#: Rows of a reference, but for those that have to be added to cover every category.
ROWS = 32
#: Made-up candidates that they are chosen from.
POOL = 512


def make_reference(
    signature: Signature,
    candidates: Sequence[Candidate],
    vectorizer: DictVectorizer,
    model: Classifier,
    positive_column: int,
) -> Reference:
    """Choose made-up candidates, spread over the probabilities, that have every category between them."""
    pool = _pool(signature, candidates)
    order = np.argsort(model.predict_proba(encode(vectorizer, pool))[:, positive_column], kind="stable")
    spread = np.linspace(0, len(order) - 1, min(ROWS, len(order))).round().astype(int)
    chosen = [pool[index] for index in order[spread]]
    for field in signature.fields:
        for category in field.categories if isinstance(field, Category) else ():
            if all(candidate[field.name] != category for candidate in chosen):
                chosen.append({**chosen[len(chosen) // 2], field.name: category})
    probabilities = model.predict_proba(encode(vectorizer, chosen))[:, positive_column]
    return Reference(candidates=tuple(chosen), probabilities=tuple(probabilities.tolist()))


def _pool(signature: Signature, candidates: Sequence[Candidate]) -> list[Candidate]:
    random = np.random.default_rng(SEED)
    columns = []
    for field in signature.fields:
        values = random.integers(len(candidates), size=POOL)
        columns.append([_blurred(field, candidates[index][field.name]) for index in values])
    made = [dict(zip(signature.names, values, strict=True)) for values in zip(*columns, strict=True)]
    real = {tuple(candidate[name] for name in signature.names) for candidate in candidates}
    # Where there are few fields, chance may put a real candidate together again, and there is no one else.
    return [candidate for candidate in made if tuple(candidate.values()) not in real] or made


def _blurred(field: RawField, value: str | float) -> str | float:
    if isinstance(field, Number):
        return min(max(float(f"{value:.3g}"), field.minimum), field.maximum)
    return value
