"""Comparison of bulk scoring with scikit-learn on the whole frame: the table of docs/bulk-scoring.md.

    python -m benchmarks.bulk_scoring --model models/placement/v1 --rows 200000

The baselines are scikit-learn's on one core, for all candidates in memory: `predict_proba` alone, and with
DictVectorizer. A job also reads, validates and writes. Its workers' start does not grow with the rows, and is
left out. Rates per core are those of processor time, which other work on the machine hardly changes.

The growth from 1 to 2 workers needs an idle machine. Two virtual cores are often one real core, so it is
compared with that of `predict_proba` in 1 and 2 processes.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from scoring.engines import run_local
from scoring.job import Job, Part, plan
from scoring.part import score_part
from scoring.predictor import BundleSource, opened
from storage.bundles import read_bundle
from storage.uris import local_path
from training.encoding import encode, fit_vectorizer
from training.generator import generate
from transformer.bundle.format import MODEL_FILE
from transformer.bundle.signature import Value

#: Rounds of each measurement, of which the median counts. The measurements of a round follow each other.
ROUNDS = 3
PARTS = 8


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=200_000)
    options = parser.parse_args()
    rows: int = options.rows
    candidates = generate(rows, 7).candidates
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        predict, encode_and_predict = _baselines(options.model, candidates, directory / "features.npy")
        pd.DataFrame(candidates).to_parquet(directory / "in.parquet", row_group_size=rows // PARTS)
        rounds = []
        for number in range(ROUNDS):
            job, parts = _plan(options.model, directory / "in.parquet", directory / f"out{number}")
            opened(job.source)
            calls = (predict, encode_and_predict, partial(_score, job, parts))
            rounds.append([_core_seconds(call) for call in calls])
        whole, encoded, scored = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
        growth = [_growth(options.model, directory, number) for number in range(ROUNDS)]
    ours, bare = map(statistics.median, zip(*growth, strict=True))
    sys.stdout.write(
        f"| one core | rows per second |\n|---|--:|\n"
        f"| scikit-learn: `predict_proba` | {rows / whole:,.0f} |\n"
        f"| scikit-learn: DictVectorizer, `predict_proba` | {rows / encoded:,.0f} |\n"
        f"| `placement score`: read, validate, encode, `predict_proba`, write | {rows / scored:,.0f} |\n\n"
        f"shares of the two: {whole / scored:.2f}, {encoded / scored:.2f}\n"
        f"2 workers / 1 worker: {ours:.2f}; 2 processes with `predict_proba` alone / 1: {bare:.2f}\n"
    )


def _plan(uri: str, inputs: Path, output: Path) -> tuple[Job, list[Part]]:
    bundle = read_bundle(uri)
    return plan(BundleSource.of(uri, bundle), bundle.signature.datatypes, inputs, output)


def _load_model(uri: str) -> Any:  # noqa: ANN401 (scikit-learn has no types)
    path = local_path(uri)
    assert path is not None  # noqa: S101 (the benchmark's model is local)
    return joblib.load(path / MODEL_FILE)


def _baselines(
    uri: str, candidates: list[dict[str, Value]], saved: Path
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the calls of the two baselines, and save the features."""
    model = _load_model(uri)
    vectorizer = fit_vectorizer(read_bundle(uri).signature)
    features = encode(vectorizer, candidates)
    np.save(saved, features)
    return (
        lambda: model.predict_proba(features),
        lambda: model.predict_proba(encode(vectorizer, candidates)),
    )


def _score(job: Job, parts: list[Part]) -> None:
    for part in parts:
        score_part(job, part)


def _core_seconds(call: Callable[[], object]) -> float:
    with threadpool_limits(limits=1):
        start = time.process_time()
        call()
        return time.process_time() - start


def _growth(uri: str, directory: Path, number: int) -> tuple[float, float]:
    """Return how much faster two workers are than one, and two processes of the model alone than one."""
    jobs = {
        workers: _plan(uri, directory / "in.parquet", directory / f"growth{number}-{workers}")
        for workers in (1, 2)
    }
    ours = {workers: _rate(*job, workers) for workers, job in jobs.items()}
    bare = {workers: _model_rate(uri, directory / "features.npy", workers) for workers in (1, 2)}
    return ours[2] / ours[1], bare[2] / bare[1]


def _rate(job: Job, parts: list[Part], workers: int) -> float:
    """Return rows per second of the clock, from when each worker has finished a part."""
    results = run_local(job, parts, workers)
    for _ in range(workers):
        next(results)
    start = time.perf_counter()
    rows = sum(result.valid for result in results)
    return rows / (time.perf_counter() - start)


def _model_rate(uri: str, features: Path, processes: int) -> float:
    """Return rows per second of `predict_proba` in processes that share nothing."""
    context = get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(processes, context) as pool:
        together = manager.Barrier(processes)
        calls = [pool.submit(_timed_model, uri, features, together) for _ in range(processes)]
        return sum(call.result() for call in calls)


def _timed_model(uri: str, features: Path, together: threading.Barrier) -> float:
    warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
    model, rows = _load_model(uri), np.load(features)
    with threadpool_limits(limits=1):
        together.wait()
        start = time.perf_counter()
        model.predict_proba(rows)
        return len(rows) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
