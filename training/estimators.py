"""The estimators that training chooses from, by name, and their times to predict.

The stock servers can unpickle all of them, even with an older numpy than ours. Gradient boosting
(`GradientBoostingClassifier`, `HistGradientBoostingClassifier`) and neural networks are missing for that
reason: their fitted estimators hold numpy's random generator, and numpy 1.26 cannot read such a pickle from
numpy 2. They are also less accurate on the real candidates: 92.9 % and 93.9 %, where the best classifiers
below reach 95 to 96 %. A forest's serving form is such an estimator, too, but without a generator.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import joblib
import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from training.serving_form import is_supported
from transformer.bundle.classes import Kind, Label
from transformer.bundle.target import Scores, Target

#: Random seed, so that every fit is repeatable.
SEED = 0
#: Kinds of question with classes, and all kinds.
CLASSIFICATION: tuple[Kind, ...] = ("binary", "multiclass")
ALL_KINDS: tuple[Kind, ...] = (*CLASSIFICATION, "regression")


class Estimator(Protocol):
    """Interface of scikit-learn's classifiers and regressors, and of Pipelines that end in one.

    A regressor has no `classes_`; neither it nor some classifiers have `predict_proba`.
    """

    classes_: npt.NDArray[Any]

    def fit(self, features: pd.DataFrame, labels: Sequence[Label]) -> "Estimator":
        """Fit, and return the estimator."""

    def predict(self, features: pd.DataFrame) -> npt.NDArray[Any]:
        """Return the class or the number of each row."""

    def predict_proba(self, features: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return the probability of each class, in the order of `classes_`."""

    def get_params(self) -> dict[str, Any]:
        """Return the parameters; a pipeline includes those of its steps."""

    def set_params(self, **params: object) -> "Estimator":
        """Set parameters, and return the estimator."""


#: Values of parameters by name.
Parameters = Mapping[str, float]
NO_PARAMETERS: Parameters = MappingProxyType({})


@dataclass(frozen=True)
class Range:
    """Values of a parameter, which tuning tries on a logarithmic scale; integers if both limits are."""

    low: float
    high: float

    @property
    def is_integer(self) -> bool:
        """True if only integers are valid."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def __str__(self) -> str:
        return f"{'an integer from ' if self.is_integer else ''}{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class NamedEstimator:
    """A named estimator with fixed parameters.

    Attributes
    ----------
    make
        Makes the unfitted estimator for a kind of question.
    original_ms, serving_ms
        Milliseconds to predict 64 rows: as fitted, and in the form that is served (`training.serving_form`).
    max_rows
        Limit for the automatic choice: with more candidates, the fit takes too long.
    automatic
        True if the estimator takes part in the automatic choice.
    kinds
        Kinds of question that it can answer.
    space
        Parameters that tuning searches, by their names in scikit-learn. They hardly change the times above.
    parameters
        Values of some of them; the others are as `make` sets them.
    """

    name: str
    make: Callable[[Kind], Estimator]
    original_ms: float
    serving_ms: float
    max_rows: float = float("inf")
    automatic: bool = True
    kinds: tuple[Kind, ...] = CLASSIFICATION
    space: Mapping[str, Range] = field(default_factory=dict)
    parameters: Parameters = field(default_factory=dict)

    def __str__(self) -> str:
        values = ", ".join(f"{name}={value:.4g}" for name, value in self.parameters.items())
        return f"{self.name} ({values})" if values else self.name

    def with_parameters(self, parameters: Parameters) -> "NamedEstimator":
        """Return this estimator with values of parameters in `space`."""
        typed = {
            name: int(value) if self.space[name].is_integer else float(value)
            for name, value in parameters.items()
        }
        return replace(self, parameters=typed)

    def milliseconds(self, *, rewrite: bool) -> float:
        """Return the time to predict 64 rows.

        Parameters
        ----------
        rewrite
            False if forests are served as they were fitted.
        """
        return self.serving_ms if rewrite and is_supported() else self.original_ms

    def fit(self, features: pd.DataFrame, labels: Sequence[Label], kind: Kind = "binary") -> Estimator:
        """Fit a new estimator on all cores; the result predicts on one core.

        A stock server must not start threads for every request. Threads would also sum a forest's
        probabilities in changing order, which changes the last digits.
        """
        model = self.make(kind).set_params(**self.parameters)
        if "n_jobs" not in model.get_params():
            return model.fit(features, labels)
        model.set_params(n_jobs=joblib.cpu_count())
        return model.fit(features, labels).set_params(n_jobs=None)


def scores_of(model: Estimator, features: pd.DataFrame, target: Target) -> Scores:
    """Return a model's scores, as the transformer reads them from a predictor."""
    return target.read(output_of(model, features, target), len(features))


def output_of(model: Any, features: Any, target: Target) -> npt.NDArray[Any]:  # noqa: ANN401
    """Return a model's output, as the stock servers send it; the features are a frame or a matrix."""
    output: npt.NDArray[Any] = (
        model.predict_proba(features) if target.has_probabilities else model.predict(features)
    )
    return output


def _scaled(estimator: Any) -> Estimator:  # noqa: ANN401 (scikit-learn has no types)
    pipeline: Estimator = make_pipeline(StandardScaler(), estimator)
    return pipeline


def _logistic_regression(kind: Kind) -> Estimator:
    # The faster solver has no multinomial form. The default, L-BFGS, warns with a newer SciPy.
    if kind == "multiclass":
        return _scaled(LogisticRegression(solver="newton-cg"))
    return _scaled(LogisticRegression(solver="newton-cholesky"))


def _ridge(kind: Kind) -> Estimator:
    return _scaled(Ridge() if kind == "regression" else RidgeClassifier())


def _linear_svc(_: Kind) -> Estimator:
    return _scaled(LinearSVC(random_state=SEED))


def _support_vectors(_: Kind) -> Estimator:
    # C=10 is the best of 1, 3, 10, 30 on the real candidates: accuracy 95.1, 95.7, 96.3, 96.3 %.
    return _scaled(SVC(C=10, probability=True, random_state=SEED))


def _trees(
    classifier: Any,  # noqa: ANN401 (scikit-learn has no types)
    regressor: Any,  # noqa: ANN401
    count: int,
    **more: int,
) -> Callable[[Kind], Estimator]:
    def make(kind: Kind) -> Estimator:
        trees = regressor if kind == "regression" else classifier
        made: Estimator = trees(n_estimators=count, random_state=SEED, **more)
        return made

    return make


_forest = partial(_trees, RandomForestClassifier, RandomForestRegressor)
_extra_trees = partial(_trees, ExtraTreesClassifier, ExtraTreesRegressor)


# The search space of tuning. At its corners, models of 2,000 generated candidates take at most 1.7 times as
# long as with the table's parameters (support vectors with a gamma of 0.003), and most take less.
_TREES = {"min_samples_leaf": Range(1, 30), "max_features": Range(0.2, 1.0)}
_INVERSE_PENALTY = Range(1e-3, 1e2)


# The times are fixed, not measured at each training, so that the same data always give the same bundle. They
# are the best of many calls with plain arrays, as the transformer sends them, for models of the real
# candidates, on two slow virtual cores.
ESTIMATORS: dict[str, NamedEstimator] = {
    estimator.name: estimator
    for estimator in (
        NamedEstimator(
            "logistic-regression",
            _logistic_regression,
            0.1,
            0.1,
            space={"logisticregression__C": _INVERSE_PENALTY},
        ),
        # The time to fit grows with the square of the rows, the time to predict with the rows: at 10,000 rows
        # 2 s to fit, and 3 ms to predict 64.
        NamedEstimator(
            "support-vectors",
            _support_vectors,
            0.4,
            0.4,
            max_rows=10_000,
            space={"svc__C": Range(10.0, 300.0), "svc__gamma": Range(3e-3, 0.1)},
        ),
        # Of numbers, or by name of classes without probabilities.
        NamedEstimator(
            "ridge", _ridge, 0.1, 0.1, kinds=("regression",), space={"ridge__alpha": Range(1e-3, 1e3)}
        ),
        NamedEstimator(
            "ridge-classifier",
            _ridge,
            0.1,
            0.1,
            automatic=False,
            space={"ridgeclassifier__alpha": Range(1e-3, 1e3)},
        ),
        NamedEstimator(
            "linear-svc", _linear_svc, 0.1, 0.1, automatic=False, space={"linearsvc__C": Range(1e-3, 10.0)}
        ),
        NamedEstimator("forest-50", _forest(50), 1.3, 0.12, kinds=ALL_KINDS, space=_TREES),
        NamedEstimator("forest-100", _forest(100), 2.5, 0.22, kinds=ALL_KINDS, space=_TREES),
        NamedEstimator("extra-trees-100", _extra_trees(100), 2.7, 0.45, kinds=ALL_KINDS, space=_TREES),
        NamedEstimator("forest-200", _forest(200), 4.5, 0.5, kinds=ALL_KINDS, space=_TREES),
        # The tutorial's forest, for readers of the tutorial.
        NamedEstimator("tutorial", _forest(512, max_depth=16), 10.0, 2.0, automatic=False, space=_TREES),
    )
}
