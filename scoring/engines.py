"""Adapters to the engines: each runs `score_part` for all parts, on its own workers.

A part is scored again when its worker dies, by the engine's own rules. The results come in any order.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from multiprocessing import connection, get_context, parent_process
from typing import Any

from scoring.errors import ScoringError
from scoring.job import Job, Part
from scoring.part import PartResult, score_part

#: Times in a row that workers may die without finishing any part.
MAX_DEATHS = 3

#: Runs a job's parts on so many workers of this machine, or on the cluster at an address.
Engine = Callable[[Job, Sequence[Part], int, str | None], Iterator[PartResult]]


def run_local(job: Job, parts: Sequence[Part], workers: int, _: str | None = None) -> Iterator[PartResult]:
    """Score parts in processes of this machine.

    Raises
    ------
    ScoringError
        If a part cannot be scored, or workers die again and again.
    """
    waiting = dict(enumerate(parts))
    deaths = 0
    while waiting:
        with ProcessPoolExecutor(
            min(workers, len(waiting)), mp_context=get_context("spawn"), initializer=_start_worker
        ) as pool:
            futures: dict[Future[PartResult], int] = {
                pool.submit(score_part, job, part): number for number, part in waiting.items()
            }
            try:
                for future in as_completed(futures):
                    yield future.result()
                    del waiting[futures[future]]
                    deaths = 0
            except BrokenProcessPool as error:
                deaths += 1
                if deaths == MAX_DEATHS:
                    raise ScoringError(
                        f"workers died {deaths} times without finishing a part; if the machine has too "
                        "little memory, use fewer --workers"
                    ) from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    """End with the parent, also after its SIGKILL, and at once after Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = parent_process()
    assert parent is not None  # noqa: S101 (a worker has one)
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def run_ray(job: Job, parts: Sequence[Part], workers: int, cluster: str | None) -> Iterator[PartResult]:
    """Score parts with Ray Data, in a new local cluster, or in that at `cluster` or in ``RAY_ADDRESS``."""
    import ray

    def score(row: dict[str, Any]) -> dict[str, Any]:
        return asdict(score_part(job, Part(row["number"], row["file"], (row["start"], row["end"]))))

    existing = cluster or os.environ.get("RAY_ADDRESS")
    ray.init(cluster, num_cpus=None if existing else workers, logging_level=logging.WARNING)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        rows = [
            {"number": part.number, "file": part.file, "start": part.range[0], "end": part.range[1]}
            for part in parts
        ]
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(score)
        yield from (PartResult(**result) for result in results.iter_rows())
    finally:
        ray.shutdown()


def run_dask(job: Job, parts: Sequence[Part], workers: int, cluster: str | None) -> Iterator[PartResult]:
    """Score parts with Dask, in a new local cluster, or in that at `cluster`."""
    from distributed import Client, LocalCluster
    from distributed import as_completed as completed

    with ExitStack() as stack:
        address = cluster or stack.enter_context(
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
        )
        client = stack.enter_context(Client(address))
        for future in completed(client.map(partial(score_part, job), parts, pure=False)):
            yield future.result()


def run_spark(job: Job, parts: Sequence[Part], workers: int, cluster: str | None) -> Iterator[PartResult]:
    """Score parts with Spark, in this machine's, or in the cluster with the master at `cluster`."""
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    # Spark's local mode gives up after the first dead worker, unless the master says how often it may die.
    master = cluster or f"local[{workers},{MAX_DEATHS + 1}]"
    session = SparkSession.builder.appName("placement score").master(master).getOrCreate()
    try:
        scored = session.sparkContext.parallelize(parts, len(parts)).map(partial(score_part, job))
        yield from scored.collect()
    finally:
        session.stop()


ENGINES: Mapping[str, Engine] = {"local": run_local, "ray": run_ray, "spark": run_spark, "dask": run_dask}
