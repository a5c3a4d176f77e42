"""The classifiers that training chooses from, by name, and their times to predict.

The stock servers can unpickle all of them, even with an older numpy than ours. Gradient boosting
(`GradientBoostingClassifier`, `HistGradientBoostingClassifier`) and neural networks are missing for that
reason: their fitted estimators hold numpy's random generator, and numpy 1.26 cannot read such a pickle from
numpy 2. They are also less accurate on the real candidates: 92.9 % and 93.9 %, where the best classifiers
below reach 95 to 96 %. A forest's serving form is such an estimator, too, but without a generator.
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

from training.serving_form import is_supported

#: Random seed, so that every fit is repeatable.
SEED = 0


class Classifier(Protocol):
    """Interface of the scikit-learn classifiers, as far as this package uses it."""

    classes_: npt.NDArray[np.str_]

    def fit(self, features: pd.DataFrame, labels: Sequence[str]) -> "Classifier":
        """Fit, and return the classifier."""

    def predict_proba(self, features: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return the probability of each class, in the order of `classes_`."""

    def get_params(self) -> dict[str, Any]:
        """Return the parameters; a pipeline includes those of its steps."""

    def set_params(self, **params: object) -> "Classifier":
        """Set parameters, and return the classifier."""


@dataclass(frozen=True)
class Estimator:
    """A named classifier with fixed parameters.

    Attributes
    ----------
    make
        Makes the unfitted classifier.
    original_ms, serving_ms
        Milliseconds to predict 64 rows: as fitted, and in the form that is served (`training.serving_form`).
    max_rows
        Limit for the automatic choice: with more candidates, the fit takes too long.
    automatic
        True if the classifier takes part in the automatic choice.
    """

    name: str
    make: Callable[[], Classifier]
    original_ms: float
    serving_ms: float
    max_rows: float = float("inf")
    automatic: bool = True

    def milliseconds(self, *, rewrite: bool) -> float:
        """Return the time to predict 64 rows.

        Parameters
        ----------
        rewrite
            False if forests are served as they were fitted.
        """
        return self.serving_ms if rewrite and is_supported() else self.original_ms

    def fit(self, features: pd.DataFrame, labels: Sequence[str]) -> Classifier:
        """Fit a new classifier on all cores; the result predicts on one core.

        A stock server must not start threads for every request. Threads would also sum a forest's
        probabilities in changing order, which changes the last digits.
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


# The times are fixed, not measured at each training, so that the same data always give the same bundle. They
# are the best of many calls with plain arrays, as the transformer sends them, for models of the real
# candidates, on two slow virtual cores.
ESTIMATORS: dict[str, Estimator] = {
    estimator.name: estimator
    for estimator in (
        Estimator("logistic-regression", _logistic_regression, 0.1, 0.1),
        # The time to fit grows with the square of the rows, the time to predict with the rows: at 10,000 rows
        # 2 s to fit, and 3 ms to predict 64.
        Estimator("support-vectors", _support_vectors, 0.4, 0.4, max_rows=10_000),
        Estimator("forest-50", _forest(50), 1.3, 0.12),
        Estimator("forest-100", _forest(100), 2.5, 0.22),
        Estimator("extra-trees-100", _extra_trees(100), 2.7, 0.45),
        Estimator("forest-200", _forest(200), 4.5, 0.5),
        # The tutorial's forest, for readers of the tutorial.
        Estimator("tutorial", _forest(512, max_depth=16), 10.0, 2.0, automatic=False),
    )
}
