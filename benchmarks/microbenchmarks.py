"""What needs no server: our encoder beside DictVectorizer, and scikit-learn in this process."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Final

import numpy as np
import orjson
from threadpoolctl import threadpool_limits

from benchmarks.asking import WrongAnswer
from benchmarks.models import ServedModel
from training.candidates import Candidate
from transformer.bundle.candidates import Rows
from transformer.protocols.v1 import INSTANCES
from transformer.upstream.known_versions import known_versions

#: Rows that the encoder is timed with.
ENCODER_ROWS: Final = (1, 64, 10_000)
#: Rows that scikit-learn scores in this process.
BULK_ROWS: Final = 10_000
#: Different ones of each number that are encoded in turn.
_BATCHES: Final = 64
#: Each timing is repeated for at least this long, so that the clock's own cost does not count.
_SLICE_S: Final = 0.02


def encoder_seconds(
    model: ServedModel, candidates: Sequence[Candidate], rows: int, repeats: int = 5
) -> tuple[float, float]:
    """Seconds that our encoder, validation included, and DictVectorizer take for some rows, in turn.

    Each time for the next ones, so that nothing is gained from having seen them before.

    Raises
    ------
    WrongAnswer
        If they do not give the same numbers.
    """
    version = known_versions(model.bundle)[0]
    starts = range(0, min(len(candidates), _BATCHES * rows), rows)
    # As a request brings them: parsed one after the other, not scattered over the memory.
    batches = [orjson.loads(orjson.dumps(candidates[start : start + rows])) for start in starts]

    def ours(batch: list[Candidate]) -> object:
        return version.encode(Rows(batch, INSTANCES))

    def theirs(batch: list[Candidate]) -> object:
        return model.vectorizer.transform(batch)

    for batch in batches:
        if not np.array_equal(np.asarray(ours(batch)), np.asarray(theirs(batch))):
            raise WrongAnswer(f"the encoder and DictVectorizer differ on {rows} candidates")
    pairs = [(_seconds(ours, batches), _seconds(theirs, batches)) for _ in range(repeats)]
    return median(own for own, _ in pairs), median(other for _, other in pairs)


def rows_per_second(model: ServedModel, candidates: Sequence[Candidate]) -> float:
    """Candidates that `predict_proba(DictVectorizer.transform(…))` scores in this process, on one thread."""
    with threadpool_limits(1):
        model.probabilities(candidates[:64])
        start = time.perf_counter()
        model.probabilities(candidates)
        return len(candidates) / (time.perf_counter() - start)


def _seconds(encode: Callable[[list[Candidate]], object], batches: Sequence[list[Candidate]]) -> float:
    """Seconds for one batch."""
    times = 0
    start = time.perf_counter()
    while times == 0 or time.perf_counter() - start < _SLICE_S:
        for batch in batches:
            encode(batch)
        times += len(batches)
    return (time.perf_counter() - start) / times
