"""A search on a cluster, of which one worker is killed in the middle of a fit.

As a script with the arguments ``BACKEND MARKER``, it starts a cluster of several processes, runs the search
on it, and prints the trials. The backend ``local`` runs the search in this process, and nothing is killed.
The script needs no other module of the tests, because they need packages that the engines' environment lacks.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from training.backends import connect
from training.candidates import PLACEMENT
from training.cross_validation import CrossValidation
from training.encoding import encode, fit_vectorizer
from training.estimators import ESTIMATORS, NamedEstimator
from training.generator import generate
from training.tuning import Tuning, tune
from transformer.bundle.target import Scores

WORKERS = 2


@dataclass(frozen=True)
class DyingValidation(CrossValidation):
    """Kills the process that has fitted a fourth fold, if no other process has died."""

    marker: str = ""

    def _fold_scores(self, estimator: NamedEstimator, number: int) -> Scores:
        scores = super()._fold_scores(estimator, number)
        if self.marker and number == 3 and _created(self.marker):
            os.kill(os.getpid(), signal.SIGKILL)
        return scores


def _created(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@contextmanager
def existing_cluster(backend: str) -> Iterator[str]:
    """Start a cluster of `WORKERS` processes, and return its address."""
    if backend == "dask":
        from distributed import LocalCluster

        with LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as cluster:
            yield cluster.scheduler_address
    else:
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": WORKERS})
        try:
            yield nodes.address
        finally:
            nodes.shutdown()


def search(backend: str | None, address: str | None, marker: str) -> list[object]:
    """Return the results of a search among estimators of several families."""
    dataset = generate(150)
    features = encode(fit_vectorizer(PLACEMENT.signature), dataset.candidates)
    validation = DyingValidation(features, dataset.labels, PLACEMENT, dataset.first_rows, marker)
    estimators = [ESTIMATORS[name] for name in ("logistic-regression", "support-vectors", "forest-50")]
    with connect(backend, address) as run:
        trials = tune(estimators, validation, Tuning(10), run)
        return [
            (str(trial), dict(trial.estimator.parameters), trial.loss, trial.loss_error) for trial in trials
        ]


def main(backend: str, marker: str) -> None:
    """Print the trials of a search as JSON."""
    if backend == "local":
        print(json.dumps(search(None, None, "")))
    else:
        with existing_cluster(backend) as address:
            print(json.dumps(search(backend, address, marker)))


if __name__ == "__main__":
    main(*sys.argv[1:])
