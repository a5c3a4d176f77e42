"""The search for parameters: the same for equal seeds and data, also after an interruption or in parallel."""

import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import starmap
from pathlib import Path

import numpy as np
import pytest

from storage.bundles import read_bundle
from tests.training.test_selection import DATASET, FEATURES, NAMES_AND_KINDS, OTHER_LABELS
from training.candidates import PLACEMENT, SIGNATURE, Task
from training.cross_validation import CrossValidation, ScoredTrial
from training.estimators import ESTIMATORS, _forest
from training.reports.writing import write_again
from training.selection import ParameterError, estimators_for, select
from training.train import train
from training.tuning import BATCH, Tuning, TuningError, tune
from transformer.bundle.classes import Kind

TASKS: dict[Kind, Task] = {
    "binary": PLACEMENT,
    "multiclass": Task(
        signature=SIGNATURE,
        label="answer",
        kind="multiclass",
        classes=tuple(sorted({str(one) for one in OTHER_LABELS["multiclass"]})),
    ),
    "regression": Task(signature=SIGNATURE, label="answer", kind="regression"),
}
#: One that is fitted fast, for each kind.
FAST: dict[Kind, str] = {
    "binary": "logistic-regression",
    "multiclass": "logistic-regression",
    "regression": "ridge",
}


def validation(kind: Kind = "binary", rows: int = 200) -> CrossValidation:
    labels = DATASET.labels if kind == "binary" else OTHER_LABELS[kind]
    return CrossValidation(FEATURES[:rows], labels[:rows], TASKS[kind])


def searched(tuning, kind: Kind = "binary", rows: int = 200, run=starmap):
    """The parameters and losses of a search, in its order."""
    trials = tune([ESTIMATORS[FAST[kind]]], validation(kind, rows), tuning, run)
    return [(trial.estimator.parameters, trial.loss, trial.loss_error, trial.accuracy) for trial in trials]


def in_threads(function, calls):
    """Run calls at the same time; the last one may end first."""
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(function, *arguments) for arguments in list(calls)[::-1]]
        return [future.result() for future in futures[::-1]]


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_equal_seeds_give_equal_trials(kind, tmp_path):
    first = searched(Tuning(12, seed=3), kind)
    assert len({str(one) for one in first}) == 12
    assert searched(Tuning(12, seed=3), kind) == first
    assert searched(Tuning(12, seed=3, storage=tmp_path / "trials.db"), kind) == first
    assert searched(Tuning(12, seed=4), kind) != first


def test_trials_do_not_depend_on_how_many_run_at_the_same_time():
    assert searched(Tuning(BATCH + 2), run=in_threads) == searched(Tuning(BATCH + 2))


def test_a_search_goes_on_where_it_was_and_ends_with_the_same_trials(tmp_path):
    class Interrupted(Exception):
        pass

    fits = 0

    def interrupted(function, calls):
        nonlocal fits
        for arguments in calls:
            fits += 1
            if fits == 5 * 10 + 3:
                raise Interrupted
            yield function(*arguments)

    def counted(function, calls):
        nonlocal fits
        for arguments in calls:
            fits += 1
            yield function(*arguments)

    tuning = Tuning(20, storage=tmp_path / "trials.db")
    expected = searched(Tuning(20))
    with pytest.raises(Interrupted):
        searched(tuning, run=interrupted)
    fits = 0
    assert searched(tuning, run=counted) == expected
    # Ten trials were known.
    assert fits == 5 * (20 - 10)
    # A longer search begins with the trials of a shorter one.
    fits = 0
    assert searched(replace(tuning, trials=22), run=counted)[:20] == expected
    assert fits == 5 * 2


def test_a_file_keeps_searches_on_other_data_apart(tmp_path):
    tuning = Tuning(3, storage=tmp_path / "trials.db")
    assert searched(tuning) == searched(Tuning(3))
    assert searched(tuning, rows=190) == searched(Tuning(3), rows=190)
    assert searched(tuning, rows=190) != searched(tuning)


def test_a_file_keeps_searches_of_changed_estimators_apart(tmp_path):
    forest = replace(ESTIMATORS["forest-50"], make=_forest(3))
    changed = replace(forest, make=_forest(4))
    tuning = Tuning(2, storage=tmp_path / "trials.db")

    def losses(estimator, tuning):
        return [trial.loss for trial in tune([estimator], validation(), tuning)]

    assert losses(forest, tuning) == losses(forest, Tuning(2))
    assert losses(changed, tuning) == losses(changed, Tuning(2)) != losses(forest, tuning)


def test_tuned_estimators_join_the_others_and_the_cheapest_within_the_error_is_chosen():
    arguments = (FEATURES, DATASET.labels, PLACEMENT)
    _, plain = select("logistic-regression", *arguments)
    chosen, trials = select("logistic-regression", *arguments, tuning=Tuning(8))
    assert [str(trial) for trial in trials[:1]] == [str(trial) for trial in plain]
    assert len(trials) == 9
    # All take the same time, so the best one is chosen.
    assert chosen.loss == min(trial.loss for trial in trials) < plain[0].loss
    assert chosen in trials
    assert isinstance(chosen, ScoredTrial)
    again, _ = select("logistic-regression", *arguments, parameters=chosen.estimator.parameters)
    np.testing.assert_array_equal(again.scores, chosen.scores)


def test_a_tuned_bundle_says_what_was_chosen_and_gives_its_report_again(tmp_path):
    def trained(**more):
        return train(DATASET, storage=tmp_path, estimator="logistic-regression", **more)

    first = trained(tuning=Tuning(8, seed=0, storage=tmp_path / "trials.db"))
    again = trained(tuning=Tuning(8, seed=0))
    recipe = read_bundle(first.uri).recipe
    assert recipe is not None
    assert recipe.tuned is not None
    assert recipe == read_bundle(again.uri).recipe
    assert (recipe.tuned.trials, recipe.tuned.seed, recipe.tuned.estimator) == (8, 0, "logistic-regression")
    assert set(recipe.tuned.parameters) == set(ESTIMATORS["logistic-regression"].space)
    by_hand = trained(parameters=recipe.tuned.parameters)
    models = {read_bundle(one.uri).model.sha256 for one in (first, again, by_hand)}
    assert len(models) == 1
    for one in (first, by_hand):
        report = Path(write_again(one.uri, tune_storage=tmp_path / "trials.db")).read_text()
        assert ("8 trials of other parameters" in report) == (one is first)


@pytest.mark.parametrize("end", ["low", "high"])
@pytest.mark.parametrize(("name", "kind"), NAMES_AND_KINDS)
def test_every_estimator_can_be_fitted_at_the_ends_of_its_search_space(name, kind, end):
    estimator = ESTIMATORS[name]
    assert estimator.space
    values = {parameter: getattr(limits, end) for parameter, limits in estimator.space.items()}
    labels = DATASET.labels if kind == "binary" else OTHER_LABELS[kind]
    model = estimator.with_parameters(values).fit(FEATURES, labels, kind)
    assert {parameter: model.get_params()[parameter] for parameter in values} == values


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"trials": 0}, r"trials \(--tune\): must be at least 1, got 0"),
        ({"trials": 1, "seed": -1}, r"seed \(--seed\): must be 0 to 4294967295, got -1"),
    ],
)
def test_an_invalid_number_is_named(arguments, problem):
    with pytest.raises(TuningError, match=problem):
        Tuning(**arguments)


def test_an_error_says_how_to_install_optuna(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        TuningError, match=r"needs Optuna; install it: .*python -m pip install 'placement\[tune\]'"
    ):
        Tuning(1)


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("", "unable to open"),
        ("missing/trials.db", "unable to open"),
        ("text.db", "not a database"),
        ("other.db", "no longer compatible with the table schema"),
    ],
)
def test_a_file_that_cannot_keep_trials_is_named_before_anything_is_fitted(file, problem, tmp_path):
    (tmp_path / "text.db").write_text("no database" * 100)
    searched(Tuning(1, storage=tmp_path / "other.db"))
    with closing(sqlite3.connect(tmp_path / "other.db")) as other, other:
        other.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
    fits: list[object] = []

    def run(_, calls):
        fits.extend(calls)
        return ()

    path = tmp_path / file
    with pytest.raises(TuningError, match=f"{path}: cannot keep the trials in this file: .*{problem}"):
        select(
            "logistic-regression",
            FEATURES,
            DATASET.labels,
            PLACEMENT,
            tuning=Tuning(1, storage=path),
            run=run,
        )
    assert not fits


@pytest.mark.parametrize("name", ["tr?mode=memory.db", "a%20b#c.db", "{SCHEMA_VERSION} {}.db", "a+b é:@.db"])
def test_a_file_has_exactly_the_given_name(name, tmp_path):
    tuning = Tuning(1, storage=tmp_path / name)
    expected = searched(tuning)
    assert [one.name for one in tmp_path.iterdir()] == [name]
    assert searched(tuning, run=lambda _, calls: [pytest.fail("is known") for _ in calls]) == expected


@pytest.mark.parametrize(
    ("name", "parameters", "problem"),
    [
        ("auto", {"svc__C": 10.0}, "--parameter needs the name of one --estimator"),
        ("forest-50", {"svc__C": 10.0}, "svc__C: is not known for forest-50, expected min_samples_leaf, max"),
        ("forest-50", {"min_samples_leaf": 2.5}, "must be an integer from 1 to 30, got 2.5"),
        ("support-vectors", {"svc__C": 1e9}, r"svc__C: must be 10 to 300, got 1e\+09"),
        ("support-vectors", {"svc__C": float("nan")}, "svc__C: must be 10 to 300, got nan"),
    ],
)
def test_parameters_that_an_estimator_does_not_take_are_named(name, parameters, problem):
    with pytest.raises(ParameterError, match=problem):
        estimators_for(name, 100, parameters=parameters)
