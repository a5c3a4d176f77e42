"""Make a bundle from a fitted model: the model file, and the data that the transformer needs."""

import io
import math
import platform
from datetime import UTC, datetime
from hashlib import sha256

import joblib
import numpy as np
import numpy.typing as npt
import pandas as pd
import sklearn

from training.encoding import categories_of, has_category
from training.estimators import Classifier
from training.fitting import Fitted
from transformer.bundle.distribution import SCORE_BOUNDS, Distribution, NumberBins
from transformer.bundle.format import Bundle, Model, TrainingData, Vectorizer, Version
from transformer.bundle.signature import SEPARATOR, Number

#: Number of bins of a number's histogram, each with about the same number of candidates.
HISTOGRAM_BINS = 10


def dump(model: Classifier) -> bytes:
    """Serialize a model as the content of ``model.joblib``; the same model gives the same bytes."""
    buffer = io.BytesIO()
    joblib.dump(model, buffer, compress=3)
    return buffer.getvalue()


def make_bundle(
    fitted: Fitted, name: str, version: str, model: bytes, previous: tuple[Version, ...] = ()
) -> Bundle:
    """Make the bundle of a fitted model.

    Parameters
    ----------
    model
        Content of the model file.
    previous
        Earlier versions that the bundle describes, newest first.
    """
    dataset = fitted.dataset
    task, target = dataset.task, fitted.evaluation.target
    return Bundle(
        version=version,
        signature=task.signature,
        vectorizer=Vectorizer(feature_names=tuple(fitted.vectorizer.feature_names_), separator=SEPARATOR),
        classes=target.classes,
        positive_class=target.positive_class,
        threshold=target.threshold if target.kind == "binary" and target.has_probabilities else None,
        has_probabilities=target.has_probabilities,
        reference=fitted.reference,
        distribution=_distribution(fitted),
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
        metrics=fitted.evaluation.metrics,
        training_data=TrainingData(
            source=dataset.source,
            rows=len(dataset.labels),
            sha256=dataset.sha256,
        ),
        previous=previous,
    )


def _description(model: Classifier) -> str:
    return " ".join(repr(model).split())


def _libraries() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
        "joblib": joblib.__version__,
        "pandas": pd.__version__,
    }


def _distribution(fitted: Fitted) -> Distribution:
    """Count the candidates by bin; a number's bins are deciles within the signature's range."""
    dataset = fitted.dataset
    numbers: dict[str, NumberBins] = {}
    categories: dict[str, dict[str, int]] = {}
    for field in dataset.task.signature.fields:
        values = [candidate[field.name] for candidate in dataset.candidates]
        if isinstance(field, Number):
            edges = _edges(np.array(values, dtype=float), field)
            counts, _ = np.histogram(values, edges)
            numbers[field.name] = NumberBins(edges=tuple(edges), counts=tuple(counts.tolist()))
        else:
            categories[field.name] = {
                category: int(has_category(values, category).sum()) for category in categories_of(field)
            }
    number_edges: list[float] = []
    scores: list[int] = []
    evaluation = fitted.evaluation
    if evaluation.target.kind == "regression":
        number_edges = np.quantile(evaluation.values, SCORE_BOUNDS[:-1]).tolist()
        scores = _counts(np.searchsorted(number_edges, evaluation.values))
    elif evaluation.probabilities is not None:
        highest = evaluation.probabilities
        if highest.ndim > 1:
            highest = highest.max(axis=1)
        scores = _counts(np.searchsorted(SCORE_BOUNDS, highest))
    return Distribution(
        rows=len(dataset.labels),
        numbers=numbers,
        categories=categories,
        scores=tuple(scores),
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
    deciles = np.quantile(values, np.linspace(0, 1, HISTOGRAM_BINS + 1)[1:-1])
    rounded = sorted({round(float(edge), places) for edge in deciles})
    return [least, *(edge for edge in rounded if least < edge < most), most]
