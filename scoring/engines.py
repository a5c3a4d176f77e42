"""Adapters to the engines: each runs `try_part` for all parts, on its own workers.

A part is scored again when its worker dies, by the engine's own rules. The results come in any order. Each
adapter raises `ScoringError` if a part cannot be scored, or if no cluster answers.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from multiprocessing import connection, get_context, parent_process
from typing import Any

from scoring.errors import ScoringError
from scoring.job import Job, Part
from scoring.part import PartResult, try_part
from training.backends import CONNECTION_ERRORS, connection_problem, dask_client, loss_problem, start_ray

#: Times in a row that workers may die without finishing any part.
MAX_DEATHS = 3

#: Runs a job's parts on so many workers of this machine, or on the cluster at an address.
Engine = Callable[[Job, Sequence[Part], int, str | None], Iterator[PartResult]]


def existing_cluster(engine: str, cluster: str | None) -> str | None:
    """Return the address of the existing cluster that an engine uses; None for a new one on this machine."""
    return cluster or (os.environ.get("RAY_ADDRESS") if engine == "ray" else None)


def _scored(result: PartResult) -> PartResult:
    """Return the result of a part; raise its error."""
    if result.error is not None:
        raise ScoringError(result.error)
    return result


@contextmanager
def _connecting(
    engine: str, cluster: str | None, errors: tuple[type[Exception], ...] = CONNECTION_ERRORS
) -> Iterator[None]:
    """Raise `ScoringError` in place of an engine's errors while it connects."""
    try:
        yield
    except errors as error:
        raise ScoringError(f"--engine {engine}: {connection_problem(cluster, error)}") from error


def _given_up(engine: str, error: Exception) -> ScoringError:
    problem = loss_problem("a part", error)
    return ScoringError(f"--engine {engine}: {problem}; run the same command again to score what is left")


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
                pool.submit(try_part, job, part): number for number, part in waiting.items()
            }
            try:
                for future in as_completed(futures):
                    yield _scored(future.result())
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
                # Waits: the pool would wait anyway, and forget to cancel.
                pool.shutdown(cancel_futures=True)


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
    new_workers = None if existing_cluster("ray", cluster) else workers
    with _connecting("ray", cluster):
        start_ray(cluster, new_workers)
    import ray
    from ray.exceptions import RayError

    def score(row: dict[str, Any]) -> dict[str, Any]:
        return asdict(try_part(job, Part(row["number"], row["file"], (row["start"], row["end"]))))

    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        rows = [
            {"number": part.number, "file": part.file, "start": part.range[0], "end": part.range[1]}
            for part in parts
        ]
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(score, max_retries=MAX_DEATHS)
        failed = None
        try:
            for row in results.iter_rows():
                result = PartResult(**row)
                if result.error is None:
                    yield result
                else:
                    failed = failed or result
        except RayError as error:
            raise _given_up("ray", error) from error
        # Not before: Ray's threads print a traceback if they are stopped in the middle.
        if failed is not None:
            _scored(failed)
    finally:
        ray.shutdown()


def run_dask(job: Job, parts: Sequence[Part], workers: int, cluster: str | None) -> Iterator[PartResult]:
    """Score parts with Dask, in a new local cluster, or in that at `cluster`."""
    from distributed import CancelledError
    from distributed import as_completed as completed
    from distributed.scheduler import KilledWorker

    with ExitStack() as stack:
        with _connecting("dask", cluster):
            client = stack.enter_context(dask_client(cluster, workers))
        for future in completed(client.map(partial(try_part, job), parts, pure=False)):
            try:
                result = future.result()
            except (CancelledError, KilledWorker) as error:
                raise _given_up("dask", error) from error
            yield _scored(result)


def run_spark(job: Job, parts: Sequence[Part], workers: int, cluster: str | None) -> Iterator[PartResult]:
    """Score parts with Spark, in this machine's, or in the cluster with the master at `cluster`."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkRuntimeError
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    # Spark's local mode gives up after the first dead worker, unless the master says how often it may die.
    master = cluster or f"local[{workers},{MAX_DEATHS + 1}]"
    with _connecting("spark", cluster, (Py4JError, PySparkRuntimeError)):
        session = SparkSession.builder.appName("placement score").master(master).getOrCreate()
    try:
        scored = session.sparkContext.parallelize(parts, len(parts)).map(partial(try_part, job))
        try:
            results = scored.collect()
        except Py4JError as error:
            # Spark looks for its master only now. Java's stack trace follows the message.
            message = str(error).partition("\n\tat ")[0].replace("\n", " ")
            raise ScoringError(f"--engine spark, master {master}: {message}") from error
        yield from map(_scored, results)
    finally:
        session.stop()


ENGINES: Mapping[str, Engine] = {"local": run_local, "ray": run_ray, "spark": run_spark, "dask": run_dask}
