"""The vectorizer and the estimator in the objects that people save."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction import DictVectorizer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import LabelEncoder
from sklearn.utils.validation import check_is_fitted

from training.imports.model_file import ModelFile, ModelFileError, advice

_EXPECTED = (
    "expected a DictVectorizer and an estimator as a tuple or dict, a Pipeline that begins with a "
    "DictVectorizer, or an estimator with --vectorizer FILE"
)
_FITTED_TOGETHER = "they were not fitted together"


@dataclass(frozen=True)
class Pair:
    """A fitted DictVectorizer, and the estimator or Pipeline that takes its output."""

    vectorizer: DictVectorizer
    model: Any


def find_pair(file: ModelFile, vectorizer: ModelFile | None = None) -> Pair:
    """Return the vectorizer and the estimator of a file, or of two files.

    Raises
    ------
    ModelFileError
        If the files hold something else, or two that were not fitted together.
    """
    objects = _objects(file.content)
    if vectorizer is not None:
        objects += _objects(vectorizer.content)
    vectorizers = [one for one in objects if isinstance(one, DictVectorizer)]
    # An encoder of labels takes no part in predictions: the model's classes are its numbers.
    models = [one for one in objects if not isinstance(one, DictVectorizer | LabelEncoder)]
    where = file.path if vectorizer is None else f"{file.path} and {vectorizer.path}"
    if len(vectorizers) != 1 or len(models) != 1:
        found = ", ".join(type(one).__name__ for one in objects) or f"a {type(file.content).__name__}"
        raise ModelFileError(f"{where}: {_EXPECTED}, got {found}")
    pair = Pair(vectorizers[0], models[0])
    _check(where, pair)
    return pair


def _objects(content: Any) -> list[Any]:  # noqa: ANN401
    """Return the vectorizer and estimators in an object; all else in a tuple or dict is passed over."""
    if isinstance(content, (tuple, list, Mapping)):
        parts = content.values() if isinstance(content, Mapping) else content
        return [inner for part in parts if isinstance(part, BaseEstimator) for inner in _objects(part)]
    steps = list(_flattened("model", content)) if isinstance(content, BaseEstimator) else []
    if len(steps) > 1 and isinstance(steps[0][1], DictVectorizer):
        return [steps[0][1], _joined(steps[1:])]
    return [_joined(steps)] if steps else []


def _flattened(name: str, estimator: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Yield the steps of Pipelines and of Pipelines in them; a search is its best estimator."""
    estimator = getattr(estimator, "best_estimator_", estimator)
    if type(estimator) is Pipeline:
        for inner, step in estimator.steps:
            yield from _flattened(inner, step)
    elif estimator not in (None, "passthrough"):
        yield name, estimator


def _joined(steps: list[tuple[str, Any]]) -> Any:  # noqa: ANN401
    if len(steps) == 1:
        return steps[0][1]
    names = [name for name, _ in steps]
    # Steps of a nested Pipeline may have the names of others.
    unique = [name if names.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(names, 1)]
    return Pipeline([(name, step) for name, (_, step) in zip(unique, steps, strict=True)])


def _check(where: str, pair: Pair) -> None:
    names = getattr(pair.vectorizer, "feature_names_", None)
    if not names:
        raise ModelFileError(f"{where}: the DictVectorizer is not fitted")
    try:
        check_is_fitted(pair.model)
    except (NotFittedError, TypeError) as error:
        raise ModelFileError(f"{where}: the {type(pair.model).__name__} is not fitted") from error
    try:
        repr(pair.model)
    except AttributeError as error:
        # A parameter that the estimator has got since, or that has another name since.
        raise ModelFileError(f"{where}: {error} in the predictor's scikit-learn; {advice()}") from error
    expected = getattr(pair.model, "n_features_in_", len(names))
    if expected != len(names):
        raise ModelFileError(
            f"{where}: the estimator expects {expected} features, the DictVectorizer gives {len(names)}: "
            f"{_FITTED_TOGETHER}"
        )
    known = getattr(pair.model, "feature_names_in_", None)
    if known is not None and list(known) != list(names):
        first = next(number for number, name in enumerate(names) if known[number] != name)
        raise ModelFileError(
            f"{where}: feature {first + 1} of the estimator is {known[first]!r}, of the DictVectorizer "
            f"{names[first]!r}: {_FITTED_TOGETHER}"
        )
