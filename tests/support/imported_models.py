"""Rows, labels and fitted models for tests of imports."""

import warnings
from typing import Any

import joblib
import numpy as np
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression

from training.imports.importing import ImportedModel
from transformer.bundle.encoder import Encoder

random = np.random.default_rng(0)
ROWS: list[dict[str, Any]] = [
    {
        "tenure": int(random.integers(0, 70)),
        "plan": str(random.choice(["monthly", "yearly", "two years"], p=[0.6, 0.3, 0.1])),
        "senior": bool(random.random() < 0.3),
    }
    for _ in range(120)
]
#: Labels: booleans, integers, numbers, and three classes as integers and texts.
POSITIVE = np.array([row["tenure"] < 30 and row["plan"] == "monthly" for row in ROWS])
LABELS = POSITIVE.astype(int)
NUMBER = np.array([row["tenure"] / 7 + len(row["plan"]) for row in ROWS])
PLACE = np.digitize(NUMBER, [10, 14])
THREE = np.array(["low", "mid", "high ä"])[PLACE]


def solver() -> LogisticRegression:
    return LogisticRegression(solver="liblinear")


def several() -> LogisticRegression:
    # The default solver warns with a newer SciPy.
    return LogisticRegression(solver="newton-cg")


def fitted(
    estimator: Any, *, labels: Any = LABELS, rows: list[dict[str, Any]] = ROWS, **options: Any
) -> tuple[DictVectorizer, Any]:
    """Fit a vectorizer with these options, and an estimator."""
    vectorizer = DictVectorizer(**{"sparse": False, **options})
    features = vectorizer.fit_transform(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return vectorizer, estimator.fit(features, labels)


def encoder(imported: ImportedModel) -> Encoder:
    """Return the encoder of the version."""
    return Encoder(imported.bundle.vectorizer, imported.bundle.signature)


def served(imported: ImportedModel) -> Any:
    """Return the model in the version's file."""
    return joblib.load(f"{imported.uri}/model.joblib")
