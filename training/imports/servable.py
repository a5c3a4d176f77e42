"""Make an imported estimator servable by the stock model servers.

They must refuse features of other names or in another order: that is how a version is recognised, and why no
row is scored through another version's encoding. They have one thread for each request. And what only a fit
needs is left out, where another version of numpy or Python could not read it.
"""

import copy
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from training.estimators import output_of
from training.imports.model_file import names_in
from transformer.bundle.target import Target
from transformer.errors import shortened

#: Name of the step that refuses other features, before a model that does not do so itself.
GUARD = "feature_names"
#: Packages that the stock servers have besides Python's own.
_PREDICTOR_PACKAGES = {"joblib", "numpy", "pandas", "scipy", "sklearn"}
_MAX_REASON = 120
_RANDOM = (np.random.RandomState, np.random.Generator, np.random.SeedSequence)
#: Attributes that change no prediction: threads, a cache on disk, and the compiled part of a loss, whose
#: module has a name under which Python may not find it.
_LEFT_OUT = ("n_jobs", "memory", "closs")


class NotServableError(Exception):
    """A model that a stock server cannot load or that takes any features; the message says why."""


def make_servable(
    model: Any,  # noqa: ANN401 (scikit-learn has no types)
    features: pd.DataFrame,
    target: Target,
) -> Any:  # noqa: ANN401
    """Return a copy of a fitted model that knows its features' names, and refuses others.

    Parameters
    ----------
    model
        A model after `leave_out`.
    features
        Rows with the features' names, which the model can score.

    Raises
    ------
    NotServableError
        If the model cannot score them, gives something else than the target's answers, or accepts other names
        all the same.
    """
    servable = copy.deepcopy(model)
    for part in _parts(servable):
        if isinstance(classes := vars(part).get("classes_"), np.ndarray):
            # The stock servers cannot send classes that are objects, as pandas' columns of texts.
            part.classes_ = np.array(classes.tolist())
    names = features.columns.to_numpy(dtype=object)
    _learn(_first(servable), names)
    _check_scores(servable, features, target)
    if not _refuses_others(servable, features, target):
        # With `validate`, it checks names and changes nothing.
        guard = FunctionTransformer(validate=True)
        guard.n_features_in_ = len(names)
        guard.feature_names_in_ = names
        steps = (
            servable.steps if type(servable) is Pipeline else [(type(servable).__name__.lower(), servable)]
        )
        servable = Pipeline([(GUARD, guard), *steps])
        if not _refuses_others(servable, features, target):
            raise NotServableError(f"{type(model).__name__} accepts features of any names")
    return servable


def leave_out(model: Any) -> None:  # noqa: ANN401
    """Remove what no prediction needs from a model, in place."""
    for part in _parts(model):
        for name, value in list(vars(part).items()):
            if isinstance(value, _RANDOM) or (name in _LEFT_OUT and value is not None):
                setattr(part, name, None)


def _parts(model: Any) -> Iterator[Any]:  # noqa: ANN401
    """Yield the objects of scikit-learn that a model consists of."""
    waiting, seen = [model], set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, (list, tuple, set)):
            waiting += part
        elif isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, np.ndarray):
            waiting += part.ravel().tolist() if part.dtype == object else ()
        elif type(part).__module__.startswith("sklearn.") and hasattr(part, "__dict__"):
            yield part
            waiting += vars(part).values()


def _first(model: Any) -> Any:  # noqa: ANN401
    return _first(model.steps[0][1]) if isinstance(model, Pipeline) else model


def _learn(model: Any, names: Any) -> None:  # noqa: ANN401
    try:
        model.feature_names_in_ = names
    except AttributeError:
        # A property of its parts, which `_refuses_others` notices.
        return


def _check_scores(model: Any, features: pd.DataFrame, target: Target) -> None:  # noqa: ANN401
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            values = output_of(model, features, target)
        except Exception as error:
            # The estimators raise whatever their computation does.
            reason = shortened(str(error).partition("\n")[0], _MAX_REASON)
            raise NotServableError(f"{type(model).__name__} fails: {reason}") from error
    try:
        target.read(values, len(features))
    except ValueError as error:
        raise NotServableError(
            f"the output of {type(model).__name__} is invalid: {error}; expected {target.expected}"
        ) from error


def _refuses_others(model: Any, features: pd.DataFrame, target: Target) -> bool:  # noqa: ANN401
    names = list(features.columns)
    others = [[f"{name}?" for name in names], names[::-1]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for other in others[: min(len(names), 2)]:
            try:
                output_of(model, features[:1].set_axis(other, axis=1), target)
            except ValueError:
                continue
            return False
    return True


def check_loadable(content: bytes) -> None:
    """Check that the stock servers have all that a model file names.

    Raises
    ------
    NotServableError
        If they lack something.
    """
    importable = _PREDICTOR_PACKAGES | sys.stdlib_module_names - {"__main__"}
    # numpy 1 of the stock servers cannot read the random generators of numpy 2.
    missing = sorted(
        f"{module}.{name}"
        for module, name in names_in(content)
        if module.partition(".")[0] not in importable or module.startswith("numpy.random")
    )
    if missing:
        raise NotServableError(
            f"the stock model servers do not have {', '.join(missing)}, which the model needs; fit a model "
            "that needs scikit-learn only"
        )
