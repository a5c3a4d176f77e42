"""A worker that is killed in the middle of a part, once per job, or always without a marker file.

As a script, it runs a job with such a worker: ``ENGINE INPUT OUTPUT BUNDLE [MARKER]``. It needs no other
module of the tests, because they need packages that the engines' environment lacks.
"""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from scoring.engines import ENGINES
from scoring.job import finish, plan
from scoring.predictor import Answers, BundlePredictor, BundleSource
from transformer.bundle.candidates import Candidates
from transformer.bundle.format import load_bundle

WORKERS = 2


class DyingPredictor(BundlePredictor):
    """Scores in small batches, and kills its process at the second one if no other process has died."""

    def __init__(self, source: BundleSource, marker: str) -> None:
        super().__init__(source.uri, source.digest)
        self.batch_rows = 20
        self._calls = 0
        self._marker = marker

    def predict(self, candidates: Candidates) -> Answers:
        self._calls += 1
        if self._calls == 2 and (not self._marker or _created(self._marker)):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().predict(candidates)


def _created(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@dataclass(frozen=True)
class DyingSource:
    """A source of such predictors, with the identity of the version."""

    source: BundleSource
    marker: str

    @property
    def identity(self) -> dict[str, str]:
        return self.source.identity

    def open(self) -> BundlePredictor:
        return DyingPredictor(self.source, self.marker)


def main(engine: str, inputs: str, output: str, uri: str, marker: str = "") -> None:
    """Run a job."""
    bundle = load_bundle(uri)
    source = DyingSource(BundleSource.of(uri, bundle), marker)
    job, parts = plan(source, bundle.signature.datatypes, Path(inputs), Path(output))
    results = list(ENGINES[engine](job, parts, WORKERS, None))
    assert len(results) == len(parts)
    finish(Path(output))


if __name__ == "__main__":
    main(*sys.argv[1:])
