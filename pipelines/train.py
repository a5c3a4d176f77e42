"""Training of a version that is not in the storage yet."""

import shutil

from pipelines.errors import PipelineError
from training.data import Dataset
from training.publishing import Place, check_names
from training.train import Trained, train


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
        progress=print,
    )
    if trained.report is None:
        raise PipelineError(f"{report}: the report was not written; see above")
    shutil.copyfile(trained.report, report)
    return trained
