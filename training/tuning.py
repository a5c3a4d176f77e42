"""Search for better parameters of the estimators, with Optuna.

Optuna's TPE sampler asks for the parameters of `BATCH` trials, and learns their losses when all of them are
known. So the trials depend only on the seed and the data, and not on how many of them run at the same time or
which one ends first.

A file makes the search resumable: it keeps the loss of each trial. A later run asks for the same parameters
again, and takes the losses that are known from the file.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.backends import LOCAL, Run
from training.cross_validation import CrossValidation, Trial
from training.estimators import NamedEstimator
from transformer.bundle.format import Tuned

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as Asked

#: Trials that can run at the same time. With a larger number, each trial knows fewer results of earlier ones.
BATCH = 8
#: Parameter of a trial that names its estimator.
_ESTIMATOR = "estimator"
#: Packages whose versions can change the search or a loss.
_PACKAGES = ("numpy", "optuna", "scikit-learn", "scipy")


class TuningError(Exception):
    """Invalid arguments of a search, or a file that cannot be used; the message says what to change."""


@dataclass(frozen=True)
class Tuning:
    """A search as it was asked for.

    Attributes
    ----------
    trials
        Number of sets of parameters to try.
    seed
        Seed of the search.
    storage
        SQLite file of the trials; None to keep none. It may hold those of other searches, too.

    Raises
    ------
    TuningError
        If a number is out of range, or Optuna is not installed.
    """

    trials: int
    seed: int = 0
    storage: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise TuningError(f"trials (--tune): must be at least 1, got {self.trials}")
        if not 0 <= self.seed < 2**32:
            raise TuningError(f"seed (--seed): must be 0 to {2**32 - 1}, got {self.seed}")
        try:
            import optuna
        except ModuleNotFoundError as error:
            command = f"{sys.executable} -m pip install 'placement[tune]'"
            raise TuningError(f"tuning needs Optuna; install it: {command}") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)

    def result(self, chosen: NamedEstimator) -> Tuned:
        """Return what a bundle says about the search."""
        return Tuned(
            trials=self.trials,
            seed=self.seed,
            estimator=chosen.name,
            parameters=dict(chosen.parameters),
        )


def tune(
    estimators: Sequence[NamedEstimator], validation: CrossValidation, tuning: Tuning, run: Run = LOCAL
) -> Iterator[Trial]:
    """Search for parameters of these estimators, and yield each trial when its loss is known.

    The file of the trials is opened before the first trial is asked for.

    Parameters
    ----------
    validation
        Candidates on which they are compared.
    run
        Runs the fits, here or on a cluster; the result is the same.

    Raises
    ------
    TuningError
        If the file of the trials cannot be used.
    """
    record = _Record.open(tuning.storage, _identity(tuning, estimators, validation))
    return _search(estimators, validation, tuning, run, record)


def _search(
    estimators: Sequence[NamedEstimator],
    validation: CrossValidation,
    tuning: Tuning,
    run: Run,
    record: "_Record",
) -> Iterator[Trial]:
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=tuning.seed))
    for start in range(0, tuning.trials, BATCH):
        asked = [study.ask() for _ in range(min(BATCH, tuning.trials - start))]
        tried = [_suggest(one, estimators) for one in asked]
        unknown = [one for one, trial in zip(tried, asked, strict=True) if record.find(trial) is None]
        fresh = validation.trials(unknown, run)
        for one, estimator in zip(asked, tried, strict=True):
            found = record.find(one)
            if found is None:
                trial: Trial = next(fresh)
                record.add(one, trial)
            else:
                target, (loss,) = validation.target_of(estimator), found.values
                trial = Trial(estimator, target, loss, **found.user_attrs)
            study.tell(one, trial.loss)
            yield trial


def _suggest(asked: "Asked", estimators: Sequence[NamedEstimator]) -> NamedEstimator:
    """Return an estimator with the parameters that a trial asks for."""
    named = {one.name: one for one in estimators}
    chosen = named[asked.suggest_categorical(_ESTIMATOR, list(named))]
    values: dict[str, float] = {}
    for name, limits in chosen.space.items():
        parameter = f"{chosen.name}.{name}"
        if limits.is_integer:
            values[name] = asked.suggest_int(parameter, int(limits.low), int(limits.high), log=True)
        else:
            values[name] = asked.suggest_float(parameter, limits.low, limits.high, log=True)
    return chosen.with_parameters(values)


def _identity(tuning: Tuning, estimators: Sequence[NamedEstimator], validation: CrossValidation) -> str:
    """Return the name of a search in its file; all that its trials depend on, but not their number."""
    content = {
        "seed": tuning.seed,
        "batch": BATCH,
        "space": {one.name: {key: asdict(limits) for key, limits in one.space.items()} for one in estimators},
        "estimators": {one.name: repr(one.make(validation.task.kind)) for one in estimators},
        "candidates": validation.sha256,
        "versions": {name: version(name) for name in _PACKAGES},
    }
    return f"placement-{sha256(json.dumps(content).encode()).hexdigest()[:16]}"


class _Record:
    """Finished trials of a search, by their parameters; in a file if there is one."""

    def __init__(self, study: "Study | None", where: object) -> None:
        self._study = study
        self._where = where
        trials = study.trials if study else []
        self._finished = {_key(one.params): one for one in trials}

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None, name: str) -> "_Record":
        if path is None:
            return cls(None, path)
        from optuna import create_study
        from sqlalchemy import URL

        # Quotes ?, %, # and braces in the name, which have a meaning in a URL or in Optuna.
        storage = URL.create("sqlite", database=str(Path(path).absolute())).render_as_string()
        with _file_errors(path):
            return cls(create_study(study_name=name, storage=storage, load_if_exists=True), path)

    def find(self, asked: "Asked") -> "FrozenTrial | None":
        return self._finished.get(_key(asked.params))

    def add(self, asked: "Asked", trial: Trial) -> None:
        if self._study is None:
            return
        from optuna.trial import create_trial

        attributes = {"loss_error": trial.loss_error, "accuracy": trial.accuracy}
        finished = create_trial(
            params=asked.params,
            distributions=asked.distributions,
            value=trial.loss,
            user_attrs=attributes,
        )
        with _file_errors(self._where):
            self._study.add_trial(finished)


@contextmanager
def _file_errors(path: object) -> Iterator[None]:
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    # Optuna raises a plain RuntimeError for a file of another version's schema.
    except (RuntimeError, StorageInternalError, SQLAlchemyError) as error:
        problem = str(error.__cause__ or error).partition("\n")[0]
        raise TuningError(f"{path}: cannot keep the trials in this file: {problem}") from error


def _key(parameters: Mapping[str, Any]) -> str:
    return json.dumps(dict(parameters), sort_keys=True)
