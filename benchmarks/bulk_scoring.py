"""Comparison of bulk scoring with scikit-learn on the whole frame: the table of docs/bulk-scoring.md.

    python -m benchmarks.bulk_scoring --model models/placement/v1 --rows 200000

The baselines are scikit-learn's on one core, for all candidates in memory: `predict_proba` alone, and with
DictVectorizer. A job also reads, validates and writes. Its workers' start does not grow with the rows, and is
left out. Rates per core are those of processor time, which other work on the machine hardly changes; the
growth with workers needs an idle machine.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import joblib
import pandas as pd
from threadpoolctl import threadpool_limits

from scoring.engines import run_local
from scoring.job import Job, Part, plan
from scoring.part import score_part
from scoring.predictor import BundleSource, opened
from storage.bundles import local_path, read_bundle
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
    predict, encode_and_predict = _baselines(options.model, candidates)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        pd.DataFrame(candidates).to_parquet(directory / "in.parquet", row_group_size=rows // PARTS)
        rounds = []
        for number in range(ROUNDS):
            job, parts = _plan(options.model, directory / "in.parquet", directory / f"out{number}")
            opened(job.source)
            calls = (predict, encode_and_predict, partial(_score, job, parts))
            rounds.append([_core_seconds(call) for call in calls])
        whole, encoded, scored = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
        growth = [
            _rate(*_plan(options.model, directory / "in.parquet", directory / f"with{workers}"), workers)
            for workers in (1, 2)
        ]
    sys.stdout.write(
        f"| one core | rows per second |\n|---|--:|\n"
        f"| scikit-learn: `predict_proba` | {rows / whole:,.0f} |\n"
        f"| scikit-learn: DictVectorizer, `predict_proba` | {rows / encoded:,.0f} |\n"
        f"| `placement score`: read, validate, encode, `predict_proba`, write | {rows / scored:,.0f} |\n\n"
        f"shares of the two: {whole / scored:.2f}, {encoded / scored:.2f}\n"
        f"1 worker {growth[0]:,.0f} rows/s, 2 workers {growth[1]:,.0f} ({growth[1] / growth[0]:.2f} times)\n"
    )


def _plan(uri: str, inputs: Path, output: Path) -> tuple[Job, list[Part]]:
    bundle = read_bundle(uri)
    return plan(BundleSource.of(uri, bundle), bundle.signature.datatypes, inputs, output)


def _baselines(
    uri: str, candidates: list[dict[str, Value]]
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the calls of the two baselines."""
    bundle = read_bundle(uri)
    path = local_path(uri)
    assert path is not None  # noqa: S101 (the benchmark's model is local)
    model = joblib.load(path / MODEL_FILE)
    vectorizer = fit_vectorizer(bundle.signature)
    features = encode(vectorizer, candidates)
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


def _rate(job: Job, parts: list[Part], workers: int) -> float:
    """Return rows per second of the clock, from the first finished part on."""
    results = run_local(job, parts, workers)
    next(results)
    start = time.perf_counter()
    rows = sum(result.valid for result in results)
    return rows / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
