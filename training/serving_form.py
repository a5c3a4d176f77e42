"""Rewrite a forest into a gradient boosting estimator, which gives the same probabilities in less time.

A forest calls Python once for each tree. Gradient boosting walks all trees in one compiled loop. The
rewritten estimator has the forest's trees in the same order, its leaves hold the shares that the forest adds
up, and the sum is divided by the number of trees, as in the forest. So the results are equal to the last bit.

The pickled estimator needs nothing but scikit-learn. This module sets private attributes of scikit-learn, so
it refuses other versions than the pinned one.
"""

from collections.abc import Callable, Iterator, Sequence
from operator import methodcaller
from types import SimpleNamespace
from typing import Any

import numpy as np
import sklearn
from sklearn._loss.link import IdentityLink
from sklearn._loss.loss import HalfBinomialLoss, HalfMultinomialLoss
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.tree import DecisionTreeRegressor
from sklearn.tree._tree import Tree

#: Version of scikit-learn whose private attributes this module sets; the stock servers have it, too.
SCIKIT_LEARN = "1.5.2"

_CLASSIFIERS = (RandomForestClassifier, ExtraTreesClassifier)
_REGRESSORS = (RandomForestRegressor, ExtraTreesRegressor)


class NotRewritableError(Exception):
    """A forest that cannot be rewritten; the message is the reason."""


def is_supported() -> bool:
    """Return True if the installed scikit-learn is the one that this module knows."""
    return bool(sklearn.__version__ == SCIKIT_LEARN)


def forest_of(model: Any) -> Any:  # noqa: ANN401 (scikit-learn has no types)
    """Return the forest that a model is or that is the last step of a pipeline, else None."""
    last = model.steps[-1][1] if type(model) is Pipeline else model
    return last if type(last) in (*_CLASSIFIERS, *_REGRESSORS) else None


def forms(model: Any) -> Iterator[Any]:  # noqa: ANN401
    """Yield the serving forms of a fitted forest, or of a pipeline that ends in one, fastest first.

    Parameters
    ----------
    model
        Fitted model for which `forest_of` is not None.

    Raises
    ------
    NotRewritableError
        For another version of scikit-learn, and for a forest with several outputs.
    """
    forest = forest_of(model)
    if not is_supported():
        raise NotRewritableError(f"scikit-learn is {sklearn.__version__}, expected {SCIKIT_LEARN}")
    if forest.n_outputs_ != 1:
        raise NotRewritableError(f"the forest has {forest.n_outputs_} outputs, expected 1")
    for make in _makers(forest):
        form = make(forest)
        if isinstance(model, Pipeline):
            steps = [*model.steps[:-1], (model.steps[-1][0], form)]
            form = Pipeline(steps, memory=model.memory, verbose=model.verbose)
        yield form


def _makers(forest: Any) -> list[Callable[[Any], Any]]:  # noqa: ANN401
    if isinstance(forest, _REGRESSORS):
        return [_regressor]
    return [_one_column, _all_columns] if forest.n_classes_ == 2 else [_all_columns]


def _one_column(forest: Any) -> Any:  # noqa: ANN401
    """Make the form for two classes that adds up the second class's shares only.

    The first class gets 1 minus the second's probability. The forest adds both up, so the first class's
    probability can differ in its last digits.
    """
    boosting = _classifier(forest, [1], HalfBinomialLoss())
    # `predict` of gradient boosting compares the sum with 0. A forest gives the first class at exactly 0.5.
    form = FixedThresholdClassifier(
        boosting, threshold=float(np.nextafter(0.5, 1)), response_method="predict_proba"
    )
    form.estimator_ = boosting
    _set_inputs(form, forest)
    return form


def _all_columns(forest: Any) -> Any:  # noqa: ANN401
    """Make the form that walks the trees once for each class."""
    classes = int(forest.n_classes_)
    return _classifier(forest, range(classes), HalfMultinomialLoss(n_classes=classes))


def _classifier(forest: Any, columns: Sequence[int], loss: Any) -> Any:  # noqa: ANN401
    trees = len(forest.estimators_)
    rate, loss.link = _mean(trees)
    # Only a fit uses this part of a loss, and its pickle names a module that Python may not find.
    loss.closs = None
    boosting = GradientBoostingClassifier(n_estimators=trees, learning_rate=rate, init="zero")
    _set_trees(boosting, forest, columns)
    boosting._loss = loss  # noqa: SLF001 (see the module)
    boosting.classes_, boosting.n_classes_ = forest.classes_, forest.n_classes_
    return boosting


def _regressor(forest: Any) -> Any:  # noqa: ANN401
    """Make the form of a regression forest."""
    trees = len(forest.estimators_)
    rate, _ = _mean(trees)
    boosting = GradientBoostingRegressor(n_estimators=trees, learning_rate=rate, init="zero")
    _set_trees(boosting, forest, [0])
    if rate * trees == 1:
        return boosting
    # A regressor has no link. The inverse of this scaler divides by `scale_`.
    scaler = MinMaxScaler()
    scaler.min_, scaler.scale_, scaler.n_features_in_ = np.zeros(1), np.array([float(trees)]), 1
    form = TransformedTargetRegressor(boosting, transformer=scaler, check_inverse=False)
    form.regressor_, form.transformer_ = boosting, scaler
    form._training_dim = 1  # noqa: SLF001 (see the module)
    if hasattr(forest, "feature_names_in_"):
        form.feature_names_in_ = forest.feature_names_in_
    return form


def _mean(trees: int) -> tuple[float, Any]:
    """Return the learning rate and the link that give the mean of so many trees without another rounding.

    The forest rounds each sum, then divides. Multiplying each summand by 1/trees gives the same only for a
    power of two; for other numbers, the link divides the sum.
    """
    if trees & (trees - 1) == 0:
        return 1 / trees, IdentityLink()
    return 1.0, SimpleNamespace(inverse=methodcaller("__truediv__", trees))


def _set_trees(boosting: Any, forest: Any, columns: Sequence[int]) -> None:  # noqa: ANN401
    """Set a forest's trees in a gradient boosting estimator, once for each of these columns of the leaves."""
    trees = np.empty((len(forest.estimators_), len(columns)), dtype=object)
    for row, fitted in enumerate(forest.estimators_):
        for index, column in enumerate(columns):
            trees[row, index] = _tree(fitted, column)
    boosting.estimators_ = trees
    boosting.n_estimators_, boosting.n_trees_per_iteration_ = trees.shape
    boosting.init_ = "zero"
    boosting.max_features_ = forest.n_features_in_
    _set_inputs(boosting, forest)


def _tree(fitted: Any, column: int) -> Any:  # noqa: ANN401
    """Make a regression tree with a fitted tree's nodes and one column of its leaves' values."""
    state = fitted.tree_.__getstate__()
    values = np.ascontiguousarray(state["values"][:, :, column : column + 1])
    tree = Tree(fitted.n_features_in_, np.ones(1, dtype=np.intp), 1)
    tree.__setstate__({**state, "values": values})
    made = DecisionTreeRegressor()
    made.n_features_in_ = made.max_features_ = fitted.n_features_in_
    made.n_outputs_ = 1
    made.tree_ = tree
    return made


def _set_inputs(estimator: Any, forest: Any) -> None:  # noqa: ANN401
    estimator.n_features_in_ = forest.n_features_in_
    if hasattr(forest, "feature_names_in_"):
        estimator.feature_names_in_ = forest.feature_names_in_
