"""Measurements without a server: our encoder, DictVectorizer, and scikit-learn in this process."""

import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import orjson
from threadpoolctl import threadpool_limits

from benchmarks.answer_check import WrongAnswer
from benchmarks.models import ServedModel
from training.candidates import Candidate
from transformer.bundle.candidates import Rows
from transformer.protocols.v1 import INSTANCES
from transformer.upstream.known_versions import known_versions

#: Batch sizes that the encoder is timed with.
ENCODER_ROWS = (1, 8, 64, 128, 10_000)
#: Number of rows that scikit-learn scores in this process.
BULK_ROWS = 10_000
#: Number of different batches of each size.
_BATCHES = 64
#: Minimum duration of a timing, so that the cost of reading the clock does not matter.
_MIN_TIMING_S = 0.02


def encoder_seconds(
    model: ServedModel, candidates: Sequence[Candidate], rows: int, repeats: int = 5
) -> tuple[float, float]:
    """Time our encoder, validation included, and DictVectorizer on batches of `rows` candidates.

    Returns
    -------
    tuple[float, float]
        Median seconds per batch of our encoder and of DictVectorizer. Each call gets another batch, so that
        neither profits from values that it has just seen.

    Raises
    ------
    WrongAnswer
        If the two encodings differ.
    """
    version = known_versions(model.bundle)[0]
    starts = range(0, min(len(candidates), _BATCHES * rows), rows)
    # Parsed from JSON as in a request, so that a batch's objects lie next to each other in memory.
    batches = [orjson.loads(orjson.dumps(candidates[start : start + rows])) for start in starts]

    def ours(batch: list[Candidate]) -> object:
        return version.encode(Rows(batch, INSTANCES))

    def theirs(batch: list[Candidate]) -> object:
        return model.vectorizer.transform(batch)

    for batch in batches:
        if not np.array_equal(np.asarray(ours(batch)), np.asarray(theirs(batch))):
            raise WrongAnswer(f"our encoder and DictVectorizer differ on {rows} candidates")
    pairs = [(_seconds(ours, batches), _seconds(theirs, batches)) for _ in range(repeats)]
    return median(own for own, _ in pairs), median(other for _, other in pairs)


def rows_per_second(model: ServedModel, candidates: Sequence[Candidate]) -> float:
    """Measure the rows per second of `predict_proba(DictVectorizer.transform(…))` here, on one thread."""
    with threadpool_limits(1):
        model.probabilities(candidates[:64])
        start = time.perf_counter()
        model.probabilities(candidates)
        return len(candidates) / (time.perf_counter() - start)


def _seconds(encode: Callable[[list[Candidate]], object], batches: Sequence[list[Candidate]]) -> float:
    """Time the encoding of one batch."""
    times = 0
    start = time.perf_counter()
    while times == 0 or time.perf_counter() - start < _MIN_TIMING_S:
        for batch in batches:
            encode(batch)
        times += len(batches)
    return (time.perf_counter() - start) / times
