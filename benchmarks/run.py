"""A run: start what is to be measured, then measure all of it in turn, round after round."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks import bulk, machine
from benchmarks.arena import Arena
from benchmarks.asking import NoAnswer, WrongAnswer
from benchmarks.kinds import OURS_2_WORKERS, Place
from benchmarks.load import NO_WRK, Load, has_wrk, load
from benchmarks.microbenchmarks import BULK_ROWS, ENCODER_ROWS, encoder_seconds, rows_per_second
from benchmarks.models import CHOSEN, FOREST, candidates, served_model, trained
from benchmarks.results import Cell, Results
from benchmarks.servers import ServerError
from benchmarks.systems import BY_NAME, OURS, OURS_CHOSEN, PREDICTOR_CHOSEN, SYSTEMS, System
from predictor.child import ChildStartError

Progress = Callable[[str], None]

#: What can be measured besides the systems.
ENCODER: Final = "encoder"
BULK: Final = "bulk"
ADDED_LATENCY: Final = "added-latency"
NAMES: Final = (*BY_NAME, ADDED_LATENCY, BULK, ENCODER)

#: Who is sent many candidates right before scikit-learn scores the same ones in this process, by model.
BESIDE_SCIKIT_LEARN: Final = {FOREST: (OURS, OURS_2_WORKERS), CHOSEN: (OURS_CHOSEN,)}
_BESIDE: Final = tuple(name for names in BESIDE_SCIKIT_LEARN.values() for name in names)
CLIENTS: Final = (1, 16, 64, 256)
CANDIDATES: Final = (1, 100)
#: Candidates of the requests that are sent in turn, in all.
_BODY_CANDIDATES: Final = 64
#: Answers that each client must get for its first ones not to matter.
_ANSWERS: Final = 4
#: Candidates that are asked for before anything counts.
_CHECKED: Final = 32


class SelectionError(Exception):
    """A name that nothing has which can be measured."""


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes
    ----------
    rounds, seconds
        Rounds, and seconds of each load.
    limit_s
        No further round is begun that would probably end later than this.
    quick
        Whether only those loads are measured that the ratios need.
    only
        Names, or their beginnings, of what is measured; all if empty.
    forest, chosen
        Directories of bundles to serve instead of those that are trained for the benchmark.
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
        """What is measured.

        Raises
        ------
        SelectionError
            If a name is nothing's.
        """
        for name in self.only:
            if not any(known.startswith(name) for known in NAMES):
                raise SelectionError(f"--only {name}: must be the beginning of one of {', '.join(NAMES)}")
        if self.only:
            return [name for name in NAMES if name.startswith(self.only)]
        unneeded = {name for name, system in BY_NAME.items() if self.quick and not system.quick}
        return [name for name in NAMES if name not in unneeded]


def bench(settings: Settings, progress: Progress) -> Results:
    """Measure.

    Raises
    ------
    SelectionError, InstallError, StorageError, BundleError
        If it cannot begin.
    LoadError
        If no load can be made.
    """
    names = settings.names()
    if not has_wrk():
        progress(NO_WRK)
    given = {FOREST: settings.forest, CHOSEN: settings.chosen}
    models = {
        name: served_model(
            directory or trained(name, settings.work / "models", progress), settings.work / "pickles" / name
        )
        for name, directory in given.items()
    }
    place = Place(models, settings.work.resolve(), progress)
    peer = place.peer()
    start = time.monotonic()
    results = Results(machine.describe(peer), _told(settings, names))
    with (
        tempfile.TemporaryDirectory() as bodies,
        Arena(place, candidates(_CHECKED)) as arena,
    ):
        run = _Run(settings, place, arena, Path(bodies), results)
        run.start([BY_NAME[name] for name in _systems(names)])
        run.rounds(names, start)
    return results


def _told(settings: Settings, names: Sequence[str]) -> dict[str, Any]:
    """The settings that explain the figures."""
    return {
        "rounds": settings.rounds,
        "seconds": settings.seconds,
        "quick": settings.quick,
        "measured": list(names),
    }


def _systems(names: Sequence[str]) -> list[str]:
    """Systems that must run."""
    needed = {PREDICTOR_CHOSEN, OURS_CHOSEN} if ADDED_LATENCY in names else set()
    needed |= set(_BESIDE) if BULK in names else set()
    return [system.name for system in SYSTEMS if system.name in {*names, *needed}]


class _Run:
    """One run's systems and figures."""

    def __init__(
        self, settings: Settings, place: Place, arena: Arena, bodies: Path, results: Results
    ) -> None:
        self._settings = settings
        self._place = place
        self._arena = arena
        self._bodies = bodies
        self._results = results
        self._candidates = candidates(BULK_ROWS)
        #: Loads that wrk measured too soon, when most clients still waited for their first answer.
        self._slow: set[Cell] = set()

    def start(self, systems: Sequence[System]) -> None:
        """Start the systems, one after the other."""
        for system in systems:
            self._try(system.name, partial(self._start, system))

    def rounds(self, names: Sequence[str], start: float) -> None:
        """Measure in turn, each round beginning elsewhere."""
        others = {
            ADDED_LATENCY: self._measure_added_latency,
            BULK: self._measure_bulk_beside_scikit_learn,
            ENCODER: self._measure_encoder,
        }
        for number in range(self._settings.rounds):
            began = time.monotonic()
            first = number * len(names) // self._settings.rounds
            for name in (*names[first:], *names[:first]):
                if name not in self._results.problems:
                    self._place.progress(f"round {number + 1} of {self._settings.rounds}: {name}")
                    self._try(name, others.get(name) or partial(self._measure, BY_NAME[name]))
            self._results.settings["rounds"] = number + 1
            now = time.monotonic()
            limit = self._settings.limit_s
            if limit is not None and now - start + now - began > limit:
                break

    def _try(self, name: str, action: Callable[[], None]) -> None:
        """Do it; a problem ends what is measured of it, and nothing else."""
        try:
            action()
        except (ServerError, ChildStartError, WrongAnswer, NoAnswer) as error:
            self._results.problems[name] = str(error)
            self._place.progress(f"{name}: NOT MEASURED: {error}")

    def _start(self, system: System) -> None:
        self._results.ready_s[system.name] = self._arena.start(system)

    def _measure(self, system: System) -> None:
        with self._arena.awake(system):
            self._arena.warm_up(system)
            for clients, count in self._loads(system):
                measured = self._load(system, clients, count)
                self._results.loads[Cell(system.name, clients, count)].append(measured)
                failed = f", {measured.failed} FAILED" if measured.failed else ""
                self._place.progress(
                    f"  {clients} clients, {count} a request: {measured.per_second:.0f}/s, "
                    f"median {measured.p50_ms:.1f} ms{failed}"
                )
                self._arena.settle(system)
            if system.bulk and system.name not in _BESIDE:
                self._measure_bulk(system)
            self._results.memory_mb[system.name].append(self._arena.memory_mb(system))

    def _loads(self, system: System) -> tuple[tuple[int, int], ...]:
        if self._settings.quick:
            return system.quick or ((64, 1),)
        return (*((clients, count) for count in CANDIDATES for clients in CLIENTS), *system.extra)

    def _load(self, system: System, clients: int, count: int) -> Load:
        file = self._bodies / f"{system.name}-{count}"
        if not file.exists():
            requests = max(_BODY_CANDIDATES // count, 8)
            starts = [number * count for number in range(min(requests, len(self._candidates) // count))]
            bodies = [self._arena.body(system, self._candidates[start : start + count]) for start in starts]
            file.write_bytes(b"\n".join(bodies))
        url, seconds = self._arena.url(system), self._settings.seconds
        cell = Cell(system.name, clients, count)
        if cell not in self._slow and not (system.slow and clients > 1):
            measured = load(url, file, clients, seconds)
            if measured.requests >= _ANSWERS * clients:
                return measured
            self._slow.add(cell)
            self._arena.settle(system)
        return load(url, file, clients, seconds, steady=True)

    def _measure_bulk(self, system: System) -> None:
        starts = range(0, len(self._candidates), bulk.CANDIDATES)
        parts = [self._candidates[start : start + bulk.CANDIDATES] for start in starts]
        rate = bulk.candidates_per_second(
            self._arena.url(system), [self._arena.body(system, part) for part in parts]
        )
        self._results.bulk[system.name].append(rate)
        self._place.progress(f"  in bulk: {rate:.0f} candidates/s")

    def _measure_added_latency(self) -> None:
        ours, direct = BY_NAME[OURS_CHOSEN], BY_NAME[PREDICTOR_CHOSEN]
        differences = []
        with self._arena.awake(direct, ours):
            for system in (direct, ours):
                self._arena.warm_up(system)
            for _ in range(1 if self._settings.quick else 3):
                before, own, after = (self._load(system, 1, 1).p50_ms for system in (direct, ours, direct))
                differences.append(own - (before + after) / 2)
        self._results.added_ms.append(median(differences))
        self._place.progress(f"  {median(differences):.2f} ms")

    def _measure_encoder(self) -> None:
        model = self._place.models[FOREST]
        for rows in ENCODER_ROWS:
            ours, theirs = encoder_seconds(model, self._candidates, rows)
            self._results.encoder_s[rows].append((ours, theirs))
            self._place.progress(f"  {rows} rows: {1e6 * ours:.0f} µs, DictVectorizer {1e6 * theirs:.0f} µs")

    def _measure_bulk_beside_scikit_learn(self) -> None:
        for name, systems in BESIDE_SCIKIT_LEARN.items():
            for system in (BY_NAME[one] for one in systems):
                with self._arena.awake(system):
                    self._arena.warm_up(system)
                    self._measure_bulk(system)
            rate = rows_per_second(self._place.models[name], self._candidates)
            self._results.in_process[name].append(rate)
            self._place.progress(f"  scikit-learn in process, {name}: {rate:.0f} candidates/s")
