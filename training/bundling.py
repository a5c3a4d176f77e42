"""Make a bundle from a fitted model: the model file, and the data that the transformer needs."""

import io
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

import joblib
import numpy as np
import numpy.typing as npt
import pandas as pd
import sklearn
from sklearn.feature_extraction import DictVectorizer

from training.candidates import Candidate, Task
from training.encoding import categories_of, has_category
from training.estimators import Estimator
from training.served import Served
from transformer.bundle.distribution import SCORE_BOUNDS, Distribution, NumberBins
from transformer.bundle.format import (
    Background,
    Bundle,
    Imported,
    Model,
    Recipe,
    Reference,
    TrainingData,
    Vectorizer,
    Version,
)
from transformer.bundle.signature import Number, Signature
from transformer.bundle.target import Scores, Target

#: Number of bins of a number's histogram, each with about the same number of candidates.
HISTOGRAM_BINS = 10


@dataclass(frozen=True, kw_only=True)
class FittedModel:
    """A fitted model, and what its bundle says about it.

    Attributes
    ----------
    target
        What the model predicts, with its classes and threshold.
    served
        The model in the form in which it is served.
    reference
        Reference rows with the model's probabilities.
    metrics
        Quality on rows that the model was not fitted on.
    distribution, background
        Bins for drift and background rows of explanations; None without a sample of rows.
    recipe, training_data
        Arguments and data that fit the same model again; None for an imported model.
    imported
        Origin of an imported model.
    """

    task: Task
    target: Target
    vectorizer: DictVectorizer
    model: Estimator
    served: Served
    reference: Reference
    metrics: dict[str, float]
    distribution: Distribution | None = None
    background: Background | None = None
    recipe: Recipe | None = None
    training_data: TrainingData | None = None
    imported: Imported | None = None


def dump(model: Estimator) -> bytes:
    """Serialize a model as the content of ``model.joblib``; the same model gives the same bytes."""
    buffer = io.BytesIO()
    joblib.dump(model, buffer, compress=3)
    return buffer.getvalue()


def make_bundle(
    fitted: FittedModel, name: str, version: str, model: bytes, previous: tuple[Version, ...] = ()
) -> Bundle:
    """Make the bundle of a fitted model.

    Parameters
    ----------
    model
        Content of the model file.
    previous
        Earlier versions that the bundle describes, newest first.
    """
    task, target = fitted.task, fitted.target
    return Bundle(
        version=version,
        signature=task.signature,
        vectorizer=describe_vectorizer(fitted.vectorizer),
        classes=target.classes,
        positive_class=task.positive_class,
        threshold=target.threshold if target.has_threshold else None,
        has_probabilities=target.has_probabilities,
        reference=fitted.reference,
        distribution=fitted.distribution,
        background=fitted.background,
        name=name,
        row_name=task.row_name,
        recipe=fitted.recipe,
        created=datetime.now(UTC).replace(microsecond=0),
        model=Model(
            sha256=sha256(model).hexdigest(),
            estimator=_description(fitted.model),
            serving_form=_description(fitted.served.model) if fitted.served.rows else None,
            libraries=_libraries(),
        ),
        metrics=fitted.metrics,
        training_data=fitted.training_data,
        imported=fitted.imported,
        previous=previous,
    )


def describe_vectorizer(vectorizer: DictVectorizer) -> Vectorizer:
    """Return a fitted DictVectorizer as data."""
    return Vectorizer(feature_names=tuple(vectorizer.feature_names_), separator=vectorizer.separator)


def _description(model: Estimator) -> str:
    return " ".join(repr(model).split())


def _libraries() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
        "joblib": joblib.__version__,
        "pandas": pd.__version__,
    }


def make_distribution(
    signature: Signature, candidates: Sequence[Candidate], target: Target, scores: Scores
) -> Distribution:
    """Count candidates by bin; a number's bins are deciles, or single numbers, within the signature's range.

    Scores are counted, too, unless the model has no probabilities.

    Parameters
    ----------
    scores : ndarray of float64, shape (candidates, `target.columns`)
        The model's scores of the candidates.
    """
    numbers: dict[str, NumberBins] = {}
    categories: dict[str, dict[str, int]] = {}
    for field in signature.fields:
        values = [candidate[field.name] for candidate in candidates]
        if isinstance(field, Number):
            edges = _edges(np.array(values, dtype=float), field)
            counts, _ = np.histogram(values, edges)
            numbers[field.name] = NumberBins(edges=tuple(edges), counts=tuple(counts.tolist()))
        else:
            categories[field.name] = {
                category: int(has_category(values, category).sum()) for category in categories_of(field)
            }
    ordered = target.ordered_scores(*target.answers(scores))
    number_edges: list[float] = []
    if target.kind == "regression" and ordered is not None:
        number_edges = np.quantile(ordered, SCORE_BOUNDS[:-1]).tolist()
    counted = [] if ordered is None else _counts(np.searchsorted(number_edges or SCORE_BOUNDS, ordered))
    return Distribution(
        rows=len(candidates),
        numbers=numbers,
        categories=categories,
        scores=tuple(counted),
        number_edges=tuple(number_edges),
    )


def _counts(bins: npt.NDArray[np.intp]) -> list[int]:
    """Return the number of candidates in each bin of the score."""
    # Added up, probabilities can be more than 1 by rounding.
    counts: list[int] = np.bincount(
        np.minimum(bins, len(SCORE_BOUNDS) - 1), minlength=len(SCORE_BOUNDS)
    ).tolist()
    return counts


def _edges(values: npt.NDArray[np.float64], field: Number) -> list[float]:
    """Return the edges of a number's bins. Without a limit, they end where the data do.

    Rounded to about a thousandth of the range, because they are public, as labels of metrics.
    """
    least = float(values.min()) if field.minimum is None else field.minimum
    most = float(values.max()) if field.maximum is None else field.maximum
    if least == most:
        return [least, most]
    places = 3 - math.ceil(math.log10(most - least))
    if field.minimum is None:
        least = math.floor(least * 10**places) / 10**places
    if field.maximum is None:
        most = math.ceil(most * 10**places) / 10**places
    step = 10.0**-places
    inner = np.clip(_inner_edges(values, least, most), least + step, most - step)
    rounded = sorted({round(float(edge), places) for edge in inner})
    return [least, *(edge for edge in rounded if least < edge < most), most]


def _inner_edges(values: npt.NDArray[np.float64], least: float, most: float) -> npt.NDArray[np.float64]:
    """Return edges between bins: deciles, or middles between few different numbers, such as 0 and 1."""
    different = np.unique(values)
    if len(different) == 1:
        different = np.unique([least, *different, most])
    middles = (different[:-1] + different[1:]) / 2
    if len(different) <= HISTOGRAM_BINS:
        return middles
    deciles = np.quantile(values, np.linspace(0, 1, HISTOGRAM_BINS + 1)[1:-1])
    # If the lowest number, or the highest, is that of most candidates, it still has a bin.
    return np.clip(deciles, middles[0], middles[-1])
