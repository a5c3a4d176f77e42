"""Reference rows: candidates whose answers identify a model.

The candidates are artificial. A bundle is copied to every pod that serves it, so it must not hold real
people: each field's value comes from another candidate, and numbers are rounded to three significant digits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.feature_extraction import DictVectorizer

from training.candidates import Candidate
from training.cross_validation import Floats
from training.encoding import encode
from training.estimators import SEED, Estimator, scores_of
from transformer.bundle.format import Reference
from transformer.bundle.signature import Boolean, Category, Number, RawField, Signature, Value
from transformer.bundle.target import Target

#: Number of reference rows, before rows are added for missing categories.
ROWS = 32
#: Number of reference rows of a model without probabilities: half of them where it is least sure, as another
#: model is most likely to give another class there.
ROWS_WITHOUT_PROBABILITIES = 128
#: Value of an open field that stands for all that the signature does not list.
UNKNOWN = "(unknown)"
#: Maximum values of the encoded rows, if rows are added for missing categories: each verification sends them.
MAX_VALUES = 1 << 20
#: Number of artificial candidates that the reference rows are chosen from.
POOL_SIZE = 512


def make_reference(
    signature: Signature,
    candidates: Sequence[Candidate],
    vectorizer: DictVectorizer,
    model: Estimator,
    target: Target,
) -> Reference:
    """Choose artificial candidates that spread over the scores and cover every category."""
    pool = _artificial_candidates(signature, candidates)
    features = encode(vectorizer, pool)
    scores = target.ordered_scores(*target.answers(scores_of(model, features, target)))
    if scores is not None:
        order = np.argsort(scores, kind="stable")
        chosen = [pool[index] for index in _spread(order, ROWS)]
    else:
        order = np.argsort(_margins(model, features), kind="stable")
        half = ROWS_WITHOUT_PROBABILITIES // 2
        chosen = [pool[index] for index in (*order[:half], *_spread(order[half:], half))]
    most = MAX_VALUES // len(vectorizer.feature_names_)
    for field in signature.fields:
        if isinstance(field, Number | Boolean):
            continue
        covered = {one for row in chosen for one in _categories(row[field.name])}
        missing = [one for one in field.categories if one not in covered]
        for category in missing[: max(0, most - len(chosen))]:
            value = category if isinstance(field, Category) else (category,)
            chosen.append({**chosen[len(chosen) // 2], field.name: value})
    answers = target.recorded(scores_of(model, encode(vectorizer, chosen), target))
    kind = "probabilities" if target.has_probabilities else "predictions"
    return Reference.model_validate({"candidates": chosen, kind: answers})


def _categories(value: Value) -> tuple[Value, ...]:
    return value if isinstance(value, tuple) else (value,)


def _spread(order: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.intp]:
    """Return items at equal distances."""
    chosen = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return order.take(chosen)


def _margins(model: Any, features: pd.DataFrame) -> Floats:  # noqa: ANN401 (scikit-learn has no types)
    """Return how sure a model without probabilities is of its class: its distance to the nearest boundary."""
    if not hasattr(model, "decision_function"):
        return np.zeros(len(features))
    decision: Floats = model.decision_function(features)
    if decision.ndim == 1:
        return np.abs(decision)
    two = np.sort(decision, axis=1)[:, -2:]
    margins: Floats = two[:, 1] - two[:, 0]
    return margins


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


def rounded(field: RawField, value: Value) -> Value:
    """Return a number with three significant digits, within the field's range; another value unchanged."""
    if isinstance(field, Number):
        least, most = field.range
        number = min(max(float(f"{value:.3g}"), least), most)
        return float(value) if field.is_whole and not number.is_integer() else number  # type: ignore[arg-type]
    # Texts that the signature does not list may be anything, also names of people.
    if isinstance(field, Category) and value not in field.categories:
        return UNKNOWN
    if isinstance(value, tuple) and not isinstance(field, Boolean | Category):
        return tuple(one for one in value if one in field.categories)
    return value
