"""Choose an estimator by cross-validation, evaluate it, and fit it on all candidates."""

from dataclasses import dataclass

from sklearn.feature_extraction import DictVectorizer

from training.data import Dataset
from training.encoding import encode, fit_vectorizer
from training.estimators import Classifier
from training.evaluation import Evaluation, evaluate
from training.selection import AUTO, Progress, Trial, select


@dataclass(frozen=True)
class Fitted:
    """A model that is fitted on all candidates, and its cross-validation.

    Attributes
    ----------
    chosen, trials
        The trial of the chosen estimator, and all trials, fastest estimator first.
    """

    dataset: Dataset
    vectorizer: DictVectorizer
    model: Classifier
    chosen: Trial
    trials: list[Trial]
    evaluation: Evaluation


def fit(dataset: Dataset, estimator: str = AUTO, progress: Progress = lambda _: None) -> Fitted:
    """Choose an estimator, evaluate it, and fit it on all candidates.

    Parameters
    ----------
    estimator
        A name of `training.estimators.ESTIMATORS`, or ``auto``.
    """
    task = dataset.task
    progress(f"{len(dataset.labels)} candidates, {dataset.source}")
    if dataset.ignored:
        progress(f"ignored columns: {', '.join(dataset.ignored)}")
    vectorizer = fit_vectorizer(task.signature, dataset.candidates)
    features = encode(vectorizer, dataset.candidates)
    chosen, trials = select(estimator, features, dataset.labels, task.positive_class, progress)
    progress(f"chose {chosen.estimator.name}" + (", the fastest among the best" if len(trials) > 1 else ""))
    evaluation = evaluate(dataset, features, chosen)
    model = chosen.estimator.fit(features, dataset.labels)
    return Fitted(dataset, vectorizer, model, chosen, trials, evaluation)
