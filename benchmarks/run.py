"""Run the benchmark: start the systems, then measure each of them in every round."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import bulk_load, machine
from benchmarks.answer_check import NoAnswer, WrongAnswer
from benchmarks.load import NO_WRK, Load, has_wrk, load
from benchmarks.microbenchmarks import BULK_ROWS, ENCODER_ROWS, encoder_seconds, rows_per_second
from benchmarks.models import CHOSEN, FOREST, ORIGINAL_FOREST, candidates, ensure_trained, load_served_model
from benchmarks.results import Cell, Results
from benchmarks.server_process import ServerError
from benchmarks.system_runner import SystemRunner
from benchmarks.systems import (
    BY_NAME,
    OURS,
    OURS_2_WORKERS,
    OURS_CHOSEN,
    OURS_DEFAULT,
    PREDICTOR_CHOSEN,
    SYSTEMS,
    System,
)
from benchmarks.workspace import PEERS, RAY, Workspace
from predictor.child import ChildStartError

Progress = Callable[[str], None]

#: Measurements besides the systems.
ENCODER = "encoder"
BULK = "bulk"
ADDED_LATENCY = "added-latency"
START = "start"
MEASUREMENTS = (*BY_NAME, ADDED_LATENCY, BULK, ENCODER, START)

#: Systems, by model, that get large requests right before scikit-learn scores the same candidates in process.
COMPARED_WITH_SCIKIT_LEARN = {FOREST: (OURS, OURS_DEFAULT, OURS_2_WORKERS), CHOSEN: (OURS_CHOSEN,)}
_COMPARED = tuple(name for names in COMPARED_WITH_SCIKIT_LEARN.values() for name in names)
#: Systems that are started again in each round.
STARTED = ("documented", OURS, OURS_DEFAULT)
#: Number of different candidates in the requests of a load.
_BODY_CANDIDATES = 64
#: Minimum answers per client in a load by wrk; with fewer, the first answers distort the figures.
_MIN_ANSWERS = 4
#: Number of candidates whose answers are checked before a measurement.
_CHECKED = 32


class SelectionError(Exception):
    """A name that matches no measurement."""


@dataclass(frozen=True)
class Settings:
    """Settings of a run.

    Attributes
    ----------
    rounds, seconds
        Number of rounds, and duration of each load.
    limit_s
        Time limit: the run starts no round that would probably end after it.
    quick
        True to measure only the loads that the comparisons need.
    only
        Prefixes of the names to measure; empty for all.
    forest, chosen
        Directories of bundles to serve instead of the models that the benchmark trains.
    work
        Directory for models and logs.
    """

    rounds: int
    seconds: float
    limit_s: float | None = None
    quick: bool = False
    only: tuple[str, ...] = ()
    forest: Path | None = None
    chosen: Path | None = None
    work: Path = Path(".run/bench")

    def names(self) -> list[str]:
        """Names of the measurements of this run.

        Raises
        ------
        SelectionError
            If a prefix matches no measurement.
        """
        for name in self.only:
            if not any(known.startswith(name) for known in MEASUREMENTS):
                raise SelectionError(
                    f"--only {name}: must be the beginning of one of {', '.join(MEASUREMENTS)}"
                )
        if self.only:
            return [name for name in MEASUREMENTS if name.startswith(self.only)]
        unneeded = {name for name, system in BY_NAME.items() if self.quick and not system.quick}
        return [name for name in MEASUREMENTS if name not in unneeded]


def bench(settings: Settings, progress: Progress) -> Results:
    """Run all measurements.

    Raises
    ------
    SelectionError, InstallError, StorageError, BundleError
        If the run cannot begin.
    LoadError
        If the load generator fails.
    """
    names = settings.names()
    if not has_wrk():
        progress(NO_WRK)
    given = {FOREST: settings.forest, ORIGINAL_FOREST: settings.forest, CHOSEN: settings.chosen}
    models = {
        name: load_served_model(
            directory or ensure_trained(name, settings.work / "models", progress),
            settings.work / "pickles" / name,
        )
        for name, directory in given.items()
    }
    systems = [BY_NAME[name] for name in _systems(names)]
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        workspace = Workspace(models, settings.work.resolve(), Path(scratch), progress)
        workspace.python(PEERS)
        if any(system.server.startswith("ray") for system in systems):
            workspace.python(RAY)
        start = time.monotonic()
        described = machine.describe(workspace.pythons.values())
        results = Results(described, _reported_settings(settings, names))
        with SystemRunner(workspace, candidates(_CHECKED)) as runner:
            run = _Run(settings, workspace, runner, results)
            run.start(systems)
            run.rounds(names, start)
    return results


def _reported_settings(settings: Settings, names: Sequence[str]) -> dict[str, Any]:
    """Settings that the report shows."""
    return {
        "rounds": settings.rounds,
        "seconds": settings.seconds,
        "quick": settings.quick,
        "measured": list(names),
    }


def _systems(names: Sequence[str]) -> list[str]:
    """Names of the systems that these measurements need."""
    needed = {PREDICTOR_CHOSEN, OURS_CHOSEN} if ADDED_LATENCY in names else set()
    needed |= set(_COMPARED) if BULK in names else set()
    needed |= set(STARTED) if START in names else set()
    return [system.name for system in SYSTEMS if system.name in {*names, *needed}]


def _is_measured_once(name: str) -> bool:
    return name in BY_NAME and BY_NAME[name].once


class _Run:
    """Starts the systems and collects the figures of one run."""

    def __init__(
        self, settings: Settings, workspace: Workspace, runner: SystemRunner, results: Results
    ) -> None:
        self._settings = settings
        self._workspace = workspace
        self._runner = runner
        self._results = results
        self._candidates = candidates(BULK_ROWS)
        #: Loads that are too slow for wrk: most clients were still waiting for their first answer.
        self._slow: set[Cell] = set()

    def start(self, systems: Sequence[System]) -> None:
        """Start the systems one after the other."""
        for system in systems:
            self._try(system.name, partial(self._start, system))

    def rounds(self, names: Sequence[str], start: float) -> None:
        """Measure everything in each round; each round begins with another measurement."""
        others = {
            ADDED_LATENCY: self._measure_added_latency,
            BULK: self._measure_bulk_and_scikit_learn,
            ENCODER: self._measure_encoder,
            START: self._measure_start,
        }
        for number in range(self._settings.rounds):
            began = time.monotonic()
            first = number * len(names) // self._settings.rounds
            for name in (*names[first:], *names[:first]):
                if name not in self._results.problems and not (number and _is_measured_once(name)):
                    self._workspace.progress(f"round {number + 1} of {self._settings.rounds}: {name}")
                    self._try(name, others.get(name) or partial(self._measure, BY_NAME[name]))
            self._results.settings["rounds"] = number + 1
            now = time.monotonic()
            limit = self._settings.limit_s
            if limit is not None and now - start + now - began > limit:
                break

    def _try(self, name: str, action: Callable[[], None]) -> None:
        """Run one step; a problem excludes this measurement from the run, but no other."""
        try:
            action()
        except (ServerError, ChildStartError, WrongAnswer, NoAnswer) as error:
            self._results.problems[name] = str(error)
            self._workspace.progress(f"{name}: NOT MEASURED: {error}")

    def _start(self, system: System) -> None:
        self._results.ready_s[system.name].append(self._runner.start(system))

    def _measure(self, system: System) -> None:
        with self._runner.running(system):
            self._runner.warm_up(system)
            for clients, count in self._loads(system):
                measured = self._load(system, clients, count)
                self._results.loads[Cell(system.name, clients, count)].append(measured)
                failed = f", {measured.failed} FAILED" if measured.failed else ""
                self._workspace.progress(
                    f"  {clients} clients, {count} per request: {measured.per_second:.0f}/s, "
                    f"median {measured.p50_ms:.1f} ms{failed}"
                )
                self._runner.wait_until_idle(system)
            if system.bulk and system.name not in _COMPARED:
                self._measure_bulk(system)
            self._results.memory_mb[system.name].append(self._runner.memory_mb(system))

    def _loads(self, system: System) -> tuple[tuple[int, int], ...]:
        if self._settings.quick:
            return system.quick or ((64, 1),)
        return system.loads

    def _load(self, system: System, clients: int, count: int) -> Load:
        file = self._workspace.scratch / f"{system.name}-{count}.bodies"
        if not file.exists():
            requests = max(_BODY_CANDIDATES // count, 8)
            starts = [number * count for number in range(min(requests, len(self._candidates) // count))]
            bodies = [self._runner.body(system, self._candidates[start : start + count]) for start in starts]
            file.write_bytes(b"\n".join(bodies))
        url, seconds = self._runner.url(system), self._settings.seconds
        cell = Cell(system.name, clients, count)
        if cell not in self._slow and not (system.slow and clients > 1):
            measured = load(url, file, clients, seconds)
            if measured.requests >= _MIN_ANSWERS * clients:
                return measured
            self._slow.add(cell)
            self._runner.wait_until_idle(system)
        return load(url, file, clients, seconds, steady=True)

    def _measure_bulk(self, system: System) -> None:
        starts = range(0, len(self._candidates), bulk_load.CANDIDATES)
        parts = [self._candidates[start : start + bulk_load.CANDIDATES] for start in starts]
        rate = bulk_load.candidates_per_second(
            self._runner.url(system), [self._runner.body(system, part) for part in parts]
        )
        self._results.bulk[system.name].append(rate)
        self._workspace.progress(f"  large requests: {rate:.0f} candidates/s")

    def _measure_added_latency(self) -> None:
        ours, direct = BY_NAME[OURS_CHOSEN], BY_NAME[PREDICTOR_CHOSEN]
        differences = []
        with self._runner.running(direct, ours):
            for system in (direct, ours):
                self._runner.warm_up(system)
            for _ in range(1 if self._settings.quick else 3):
                before, own, after = (self._load(system, 1, 1).p50_ms for system in (direct, ours, direct))
                differences.append(own - (before + after) / 2)
        self._results.added_ms.append(median(differences))
        self._workspace.progress(f"  {median(differences):.2f} ms")

    def _measure_encoder(self) -> None:
        model = self._workspace.models[FOREST]
        for rows in ENCODER_ROWS:
            ours, theirs = encoder_seconds(model, self._candidates, rows)
            self._results.encoder_s[rows].append((ours, theirs))
            self._workspace.progress(
                f"  {rows} rows: {1e6 * ours:.0f} µs, DictVectorizer {1e6 * theirs:.0f} µs"
            )

    def _measure_start(self) -> None:
        for system in (BY_NAME[name] for name in STARTED):
            if system.name not in self._results.problems:
                seconds = self._runner.restart(system)
                self._results.ready_s[system.name].append(seconds)
                self._workspace.progress(f"  {system.name}: {seconds:.1f} s")

    def _measure_bulk_and_scikit_learn(self) -> None:
        for name, systems in COMPARED_WITH_SCIKIT_LEARN.items():
            for system in (BY_NAME[one] for one in systems):
                with self._runner.running(system):
                    self._runner.warm_up(system)
                    self._measure_bulk(system)
            rate = rows_per_second(self._workspace.models[name], self._candidates)
            self._results.in_process[name].append(rate)
            self._workspace.progress(f"  scikit-learn in process, {name}: {rate:.0f} candidates/s")
