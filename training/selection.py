"""Choose the estimator: a fast one within one standard error of the best in cross-validation.

The best one has the lowest mean loss. A forest's time is that of the form that will be served. The same rule
holds for tuned estimators.
"""

from collections.abc import Sequence

import pandas as pd

from training.backends import LOCAL, Run
from training.candidates import Task
from training.cross_validation import CrossValidation, Progress, ScoredTrial, Trial
from training.estimators import ESTIMATORS, NO_PARAMETERS, NamedEstimator, Parameters
from training.tuning import Tuning, tune
from transformer.bundle.classes import Kind, Label

#: Longer time to predict 64 rows that does not count: a call to a stock server takes 1 ms besides.
NEGLIGIBLE_MS = 0.25
#: Name for the automatic choice among all estimators.
AUTO = "auto"


class UnknownEstimatorError(Exception):
    """A name that is not in `ESTIMATORS`, or is there for other kinds of question."""

    def __init__(self, name: str, kind: Kind) -> None:
        names = [AUTO, *(one.name for one in ESTIMATORS.values() if kind in one.kinds)]
        problem = f"does not answer {kind} questions" if name in ESTIMATORS else "is not known"
        super().__init__(f"estimator {name!r} {problem}, expected {', '.join(names)}")


class ParameterError(Exception):
    """Parameters that an estimator does not have, or values outside their ranges."""


def estimators_for(
    name: str,
    rows: int,
    *,
    rewrite: bool = True,
    kind: Kind = "binary",
    parameters: Parameters = NO_PARAMETERS,
) -> list[NamedEstimator]:
    """Return the estimators of a name, fastest prediction first; ``auto`` stands for several.

    Parameters
    ----------
    rewrite
        False if forests are served as they were fitted.
    parameters
        Parameters of the one estimator, by their names in its `space`.

    Raises
    ------
    UnknownEstimatorError
        If the name is unknown, or is that of an estimator for other kinds of question.
    ParameterError
        If a parameter is unknown or out of range, or the name stands for several estimators.
    """
    if name == AUTO:
        if parameters:
            raise ParameterError("--parameter needs the name of one --estimator")
        automatic = [e for e in ESTIMATORS.values() if e.automatic and kind in e.kinds and rows <= e.max_rows]
        return sorted(automatic, key=lambda e: e.milliseconds(rewrite=rewrite))
    if name not in ESTIMATORS or kind not in ESTIMATORS[name].kinds:
        raise UnknownEstimatorError(name, kind)
    estimator = ESTIMATORS[name]
    for parameter, value in parameters.items():
        limits = estimator.space.get(parameter)
        if limits is None:
            raise ParameterError(
                f"--parameter {parameter}: is not known for {name}, expected {', '.join(estimator.space)}"
            )
        if not limits.low <= value <= limits.high or (limits.is_integer and value != int(value)):
            raise ParameterError(f"--parameter {parameter}: must be {limits}, got {value:g}")
    return [estimator.with_parameters(parameters)]


def choose(trials: Sequence[Trial], *, rewrite: bool = True) -> Trial:
    """Choose a trial within one standard error of the best.

    Of these, it is the best one that takes at most `NEGLIGIBLE_MS` longer than the fastest.
    """

    def time(trial: Trial) -> float:
        return trial.estimator.milliseconds(rewrite=rewrite)

    best = min(trials, key=lambda trial: trial.loss)
    good = [trial for trial in trials if trial.loss <= best.loss + best.loss_error]
    limit = min(map(time, good)) + NEGLIGIBLE_MS
    return min((trial for trial in good if time(trial) <= limit), key=lambda trial: trial.loss)


def select(
    name: str,
    features: pd.DataFrame,
    labels: Sequence[Label],
    task: Task,
    progress: Progress = lambda _: None,
    *,
    rewrite: bool = True,
    parameters: Parameters = NO_PARAMETERS,
    first_rows: Sequence[int] | None = None,
    tuning: Tuning | None = None,
    run: Run = LOCAL,
) -> tuple[ScoredTrial, list[Trial]]:
    """Cross-validate the estimators of a name; return the chosen trial and all trials.

    Parameters
    ----------
    name
        A name of `ESTIMATORS`, or ``auto`` for the automatic choice.
    rewrite
        False if forests are served as they were fitted.
    parameters
        See `estimators_for`.
    first_rows
        See `training.cross_validation.folds`.
    tuning
        Search for better parameters of these estimators; None for none.
    run
        Runs the fits, here or on a cluster.
    """
    estimators = estimators_for(name, len(labels), rewrite=rewrite, kind=task.kind, parameters=parameters)
    validation = CrossValidation(features, labels, task, first_rows)
    # Opens its file, before the estimators are compared.
    search = tune(estimators, validation, tuning, run) if tuning else iter(())
    trials: list[Trial] = []
    for trial in validation.trials(estimators, run):
        progress(str(trial))
        trials.append(trial)
    for number, tuned in enumerate(search, 1):
        progress(f"{number}: {tuned}")
        trials.append(tuned)
    chosen = choose(trials, rewrite=rewrite)
    if not isinstance(chosen, ScoredTrial):
        # It comes from the file of an earlier run, which has no scores.
        place = trials.index(chosen)
        (chosen,) = validation.trials([chosen.estimator], run)
        trials[place] = chosen
    return chosen, trials
