"""Training of a version that is not in the storage yet."""

import shutil

from pipelines.step import PipelineError
from training.data import Dataset
from training.publishing import Place, check_names
from training.train import Trained, train
from training.tuning import Tuning


def train_version(
    training: Dataset,
    directory: str,
    report: str,
    *,
    name: str,
    version: str,
    storage: str,
    previous: str,
    estimator: str,
    threshold: str,
    tune: int,
    seed: int,
) -> Trained:
    """Train the next version of a model into a directory.

    Parameters
    ----------
    report
        File for the report.
    version
        Name of the version; empty for the next number in the storage.
    previous
        URI of the version that serves; empty if none does.
    tune, seed
        Number of trials of a search for better parameters, 0 for none, and its seed.

    Raises
    ------
    Exception
        See `training.train.train`.
    """
    check_names(name, version or None)
    place = Place.checked(storage, name, version or None, previous or None)
    trained = train(
        training,
        storage=directory,
        name=name,
        version=place.next_version(),
        previous=previous or None,
        estimator=estimator,
        threshold=threshold,
        tuning=Tuning(tune, seed) if tune else None,
        progress=print,
    )
    if trained.report is None:
        raise PipelineError(f"{report}: the report was not written; see the warning")
    shutil.copyfile(trained.report, report)
    return trained
