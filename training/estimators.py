"""The classifiers to choose from, by name, fastest to predict first.

All of them unpickle in the stock servers' environments, where numpy may be older than ours. Gradient boosting
(`GradientBoostingClassifier`, `HistGradientBoostingClassifier`) and neural networks do not: their fitted
estimators carry numpy's random generator, whose pickles numpy 1.26 cannot read when numpy 2 wrote them. Nor
are they missed: 92.9 % and 93.9 % of the real candidates right, where the best ones below reach 95 to 96 %.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import joblib
import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

#: Makes every fit repeatable.
SEED = 0


class Classifier(Protocol):
    """What we use of a scikit-learn classifier."""

    classes_: npt.NDArray[np.str_]

    def fit(self, features: pd.DataFrame, labels: Sequence[str]) -> "Classifier":
        """Fit and return itself."""

    def predict_proba(self, features: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Probability of each class, in the order of `classes_`."""

    def get_params(self) -> dict[str, Any]:
        """Its parameters, with those of the steps of a pipeline."""

    def set_params(self, **params: object) -> "Classifier":
        """Set parameters and return itself."""


@dataclass(frozen=True)
class Estimator:
    """One way to make a classifier.

    Attributes
    ----------
    make
        Makes it, unfitted.
    max_rows
        More candidates than this take too long to fit; it then takes no part in the automatic choice.
    automatic
        Whether it takes part in the automatic choice at all.
    """

    name: str
    make: Callable[[], Classifier]
    max_rows: float = float("inf")
    automatic: bool = True

    def fit(self, features: pd.DataFrame, labels: Sequence[str]) -> Classifier:
        """Fit a new classifier on all cores; fitted, it predicts on one.

        A stock server must not start threads for every request. Nor do we: threads add up a forest's
        probabilities in changing order, and so in changing last digits.
        """
        model = self.make()
        if "n_jobs" not in model.get_params():
            return model.fit(features, labels)
        model.set_params(n_jobs=joblib.cpu_count())
        return model.fit(features, labels).set_params(n_jobs=None)


def _logistic_regression() -> Classifier:
    pipeline: Classifier = make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky"))
    return pipeline


def _support_vectors() -> Classifier:
    # C=10 is the best of 1, 3, 10, 30 on the real candidates: accuracy 95.1, 95.7, 96.3, 96.3 %.
    pipeline: Classifier = make_pipeline(StandardScaler(), SVC(C=10, probability=True, random_state=SEED))
    return pipeline


def _forest(trees: int, max_depth: int | None = None) -> Callable[[], Classifier]:
    return lambda: RandomForestClassifier(n_estimators=trees, max_depth=max_depth, random_state=SEED)


def _extra_trees(trees: int) -> Callable[[], Classifier]:
    return lambda: ExtraTreesClassifier(n_estimators=trees, random_state=SEED)


# The order is the order of time to predict, fixed rather than measured at each training, so that the same
# data always give the same bundle. Measured on the real candidates, median ms for 1 row / 64 rows, two slow
# virtual cores: logistic regression 0.4 / 0.4, support vectors 0.4 / 0.6, a forest of 50 1.2 / 1.3, of 100
# 2.2 / 2.3, the tutorial's of 512 8.6 / 10. Extra trees are like forests.
ESTIMATORS: dict[str, Estimator] = {
    estimator.name: estimator
    for estimator in (
        Estimator("logistic-regression", _logistic_regression),
        # Fitting takes time by the square of the rows, predicting by the rows: at 10,000, 2 s once and 3 ms
        # for 64.
        Estimator("support-vectors", _support_vectors, max_rows=10_000),
        Estimator("forest-50", _forest(50)),
        Estimator("forest-100", _forest(100)),
        Estimator("extra-trees-100", _extra_trees(100)),
        Estimator("forest-200", _forest(200)),
        # The tutorial's own, for those who follow it.
        Estimator("tutorial", _forest(512, max_depth=16), automatic=False),
    )
}
