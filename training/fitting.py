"""Choose an estimator by cross-validation, evaluate it, and fit it on all candidates."""

from collections.abc import Iterator
from dataclasses import dataclass

from training import threshold as threshold_rules
from training.backends import LOCAL, Run
from training.background import make_background
from training.bundling import FittedModel, make_distribution
from training.cross_validation import Progress, ScoredTrial, Trial, can_group_equal_rows, truth_of
from training.data import Dataset
from training.encoding import encode, fit_vectorizer
from training.estimators import NO_PARAMETERS, Parameters
from training.evaluation import Evaluation, evaluate
from training.reference import make_reference
from training.selection import AUTO, select
from training.served import serve_checked
from training.tuning import Tuning
from transformer.bundle.format import Recipe, TrainingData

#: Names of the serving forms in a recipe, without and with rewriting.
SERVING_FORMS = ("original", "auto")


@dataclass(frozen=True, kw_only=True)
class Fitted(FittedModel):
    """A model that is fitted on all candidates, and its cross-validation.

    Attributes
    ----------
    chosen, trials
        The trial of the chosen estimator, and all trials: fastest estimator first, then the tuned ones.
    """

    dataset: Dataset
    chosen: ScoredTrial
    trials: list[Trial]
    evaluation: Evaluation


def fit(
    dataset: Dataset,
    estimator: str = AUTO,
    progress: Progress = lambda _: None,
    *,
    rewrite: bool = True,
    threshold: str = threshold_rules.DEFAULT,
    parameters: Parameters = NO_PARAMETERS,
    tuning: Tuning | None = None,
    run: Run = LOCAL,
) -> Fitted:
    """Choose an estimator, evaluate it, fit it on all candidates, and rewrite a forest into its serving form.

    Parameters
    ----------
    estimator
        A name of `training.estimators.ESTIMATORS`, or ``auto``.
    rewrite
        False to serve a forest as it was fitted.
    threshold
        Lowest probability of a positive prediction, or a rule that chooses it; see `training.threshold`.
    parameters
        Parameters of the one estimator, by their names in its `space`.
    tuning
        Search for better parameters of the estimators.
    run
        Runs the fits of the cross-validation, here or on a cluster, see `training.backends`.

    Raises
    ------
    ThresholdError
        If the threshold is neither.
    training.tuning.TuningError, training.backends.BackendError
        If the file of the search cannot be used; if workers of a cluster cannot.
    """
    task = dataset.task
    choose_threshold = threshold_rules.parse(threshold)
    for line in _remarks(dataset):
        progress(line)
    vectorizer = fit_vectorizer(task.signature)
    features = encode(vectorizer, dataset.candidates)
    chosen, trials = select(
        estimator,
        features,
        dataset.labels,
        task,
        progress,
        rewrite=rewrite,
        parameters=parameters,
        first_rows=dataset.first_rows,
        tuning=tuning,
        run=run,
    )
    progress(f"chose {chosen.estimator}" + (", fast and among the best" if len(trials) > 1 else ""))
    evaluation = evaluate(dataset, features, chosen, choose_threshold)
    model = chosen.estimator.fit(features, dataset.labels, task.kind)
    target = evaluation.target
    reference = make_reference(task.signature, dataset.candidates, vectorizer, model, target)
    background = make_background(task.signature, dataset.candidates, features, vectorizer, model, target)
    made = [*reference.candidates, *background.candidates]
    served = serve_checked(model, features, vectorizer, made, target, progress, rewrite=rewrite)
    recipe = Recipe(
        label=task.label,
        estimator=estimator,
        serving_form=SERVING_FORMS[rewrite],
        threshold=threshold if target.has_threshold else None,
        seed=dataset.seed,
        parameters=dict(chosen.estimator.parameters) if parameters else {},
        tuned=tuning.result(chosen.estimator) if tuning else None,
    )
    return Fitted(
        task=task,
        target=target,
        vectorizer=vectorizer,
        model=model,
        served=served,
        reference=reference,
        metrics=evaluation.metrics,
        distribution=make_distribution(task.signature, dataset.candidates, target, chosen.scores),
        background=background,
        recipe=recipe,
        training_data=TrainingData(source=dataset.source, rows=len(dataset.labels), sha256=dataset.sha256),
        dataset=dataset,
        chosen=chosen,
        trials=trials,
        evaluation=evaluation,
    )


def _remarks(dataset: Dataset) -> Iterator[str]:
    """Yield what the trainer of a model should know about the data."""
    task = dataset.task
    yield f"{len(dataset.labels)} {task.row_names}, {dataset.source}"
    if dataset.passed_over:
        yield f"passed over: {dataset.passed_over}"
    if dataset.repeated:
        grouped = can_group_equal_rows(truth_of(dataset.labels, task), dataset.first_rows)
        folds = "keeps equal ones in one fold" if grouped else "spreads them, since too few differ"
        equal = f"{dataset.repeated:,} {task.row_names} are equal to an earlier one"
        yield f"{equal}; cross-validation {folds}"
    if dataset.defaulted:
        fields = ", ".join(dataset.defaulted)
        beside = ", although columns are passed over" if dataset.ignored else ""
        yield f"WARNING: no row has a value of {fields}: every row gets the default{beside}"
