"""``make soak``: repeat every situation with every pair of versions for a given time.

Exit status 1 if there is a wrong, mixed or missing answer, a failure that the situation does not allow, or a
situation that does not end. The logs of such runs are kept.
"""

import argparse
import asyncio
import contextlib
import functools
import itertools
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from tests.soak import cluster, rollouts
from tests.soak.outages import Record, Survived, outages
from tests.soak.rollouts import Situation, control_experiment, make_sense
from tests.support.async_clients import TRY_AGAIN
from tests.support.load import Tally
from tests.support.real_cluster import NoClusterError, cluster_namespace
from tests.support.version_pairs import PAIRS, VersionPair, make_pair

#: Situations with two versions, and outages.
SITUATIONS = (*rollouts.SITUATIONS, outages)
CONTROL = "the documented transformer"
CONTROL_PAIR = "category_renamed"
#: Timeout in seconds of a situation of up to 500 requests; the longest takes some minutes.
STUCK_S = 900
HEAD = ("| situation | pairs | requests | wrong | mixed | failed | 503 |", "|---|---|---|---|---|---|---|")


@dataclass
class Figures:
    """The figures of runs."""

    runs: int = 0
    requests: int = 0
    several: int = 0
    wrong: int = 0
    mixed: int = 0
    failed: int = 0
    try_again: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, tally: Tally) -> "Figures":
        """Return the figures of one run."""
        again = tally.failed[TRY_AGAIN]
        failed = tally.failed.total() - again
        return cls(1, tally.requests, tally.several, len(tally.wrong), len(tally.mixed), failed, again)

    def __add__(self, other: "Figures") -> "Figures":
        return Figures(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


#: Runs a situation with its logs in a directory; returns figures, a line about them, and unexpected results.
Play = Callable[[VersionPair, Path], Awaitable[tuple[Figures, str, list[str]]]]


@dataclass
class Results:
    """Figures of all runs by situation and pair, of outages by fault, and unexpected results."""

    figures: dict[tuple[str, str], Figures] = field(default_factory=dict)
    outages: Record = field(default_factory=Record)
    bad: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, situation: str, pair: str, figures: Figures) -> None:
        """Add the figures of one run."""
        key = (situation, pair)
        self.figures[key] = self.figures.get(key, Figures()) + figures

    @property
    def total(self) -> Figures:
        """Return the sum of all figures without the control experiment."""
        ours = (figures for (situation, _), figures in self.figures.items() if situation != CONTROL)
        return sum(ours, Figures())

    def __str__(self) -> str:
        """Return a table with a row for each situation."""
        by_situation: dict[str, list[Figures]] = {}
        for (situation, _), figures in self.figures.items():
            by_situation.setdefault(situation, []).append(figures)
        control = by_situation.pop(CONTROL, [])
        rows = [_row(name.replace("_", " "), *pairs) for name, pairs in by_situation.items()]
        if rows:
            rows.append(_row("**all**", *self._by_pair()))
        table = "\n".join([*HEAD, *rows, *([_row(f"*{CONTROL}*", *control)] if control else [])])
        tables = [table] if self.figures else []
        return "\n\n".join([*tables, *([str(self.outages)] if self.outages.faults else [])])

    def _by_pair(self) -> list[Figures]:
        pairs: dict[str, Figures] = {}
        for (situation, pair), figures in self.figures.items():
            if situation != CONTROL:
                pairs[pair] = pairs.get(pair, Figures()) + figures
        return list(pairs.values())

    def json(self) -> str:
        """Return the results as JSON."""
        content = {
            "minutes": round(self.seconds / 60, 1),
            "situations": [
                {"situation": situation, "versions": pair, **asdict(figures)}
                for (situation, pair), figures in self.figures.items()
            ],
            "all": asdict(self.total),
            "outages": self.outages.facts(),
            "bad": self.bad,
        }
        return json.dumps(content, indent=2)


def _row(title: str, *pairs: Figures) -> str:
    all_pairs = sum(pairs, Figures())
    counts = (all_pairs.requests, all_pairs.wrong, all_pairs.mixed, all_pairs.failed, all_pairs.try_again)
    return f"| {' | '.join([title, str(len(pairs)), *(f'{count:,}' for count in counts)])} |"


class Soak:
    """Runs situations and keeps their results, also of those that fail.

    Parameters
    ----------
    work
        Directory of versions and logs.
    requests
        Number of requests between changes.
    seed
        Seed of the first run's load; each run adds one.
    file
        File of the figures, written after each run.
    """

    def __init__(self, work: Path, requests: int, seed: int, file: Path | None) -> None:
        self.results = Results()
        self._file = file
        self._work = work
        self._requests = requests
        self._seed = seed
        self._start = time.monotonic()
        self._pair_of = functools.cache(lambda name: make_pair(name, work / "storage"))

    async def run(
        self, minutes: float, names: Sequence[str], situations: Sequence[Situation], *, once: bool
    ) -> None:
        """Run for a time, or each situation once."""
        self._start = time.monotonic()
        every = [(situation, name) for name in names for situation in situations]
        for situation, name in every if once else itertools.cycle(every):
            if time.monotonic() > self._start + 60 * minutes:
                break
            if make_sense(situation, self._pair_of(name)):
                await self._run(situation.__name__, name, functools.partial(self._play, situation))

    async def run_control(self) -> None:
        """Run the control experiment."""
        await self._run(CONTROL, CONTROL_PAIR, self._play_control)

    async def _play(
        self, situation: Situation, pair: VersionPair, run: Path
    ) -> tuple[Figures, str, list[str]]:
        outcome = await situation(pair, run, self._requests)
        if isinstance(outcome, Survived):
            self.results.outages.add(outcome.record)
        return Figures.of(outcome.tally), str(outcome.tally), outcome.unexpected

    async def _play_control(self, pair: VersionPair, run: Path) -> tuple[Figures, str, list[str]]:
        requests = 2 * self._requests
        wrong = await control_experiment(pair, run, requests)
        figures = Figures(runs=1, requests=requests, wrong=wrong)
        return figures, f"{requests} requests: wrong {wrong}", [] if wrong else ["nothing was wrong"]

    async def _run(self, situation: str, name: str, play: Play) -> None:
        """Run one situation: keep its figures, print a line, and keep its logs if anything is unexpected."""
        seed, self._seed = self._seed, self._seed + 1
        random.seed(seed)
        run = Path(tempfile.mkdtemp(prefix=f"{situation}-{name}-".replace(" ", "-"), dir=self._work))
        start = time.monotonic()
        try:
            async with asyncio.timeout(STUCK_S * max(1.0, self._requests / 500)):
                figures, text, bad = await play(self._pair_of(name), run)
        except Exception as error:  # noqa: BLE001 (whatever it is, the others' figures are not to be lost)
            figures, text, bad = Figures(runs=1), "", [f"{type(error).__name__}: {error}"]
            (run / "error.txt").write_text(traceback.format_exc())
        figures.seconds = time.monotonic() - start
        if situation != outages.__name__:
            # Outages count their failures by fault.
            self.results.add(situation, name, figures)
        self.results.seconds = time.monotonic() - self._start
        line = (
            f"{time.strftime('%H:%M:%S')} {situation}, {name}, seed {seed}, {figures.seconds:.0f} s: {text}"
        )
        if bad:
            line += f" BAD: {'; '.join(bad)}; logs in {run}"
            self.results.bad.append(line)
        else:
            shutil.rmtree(run)
        print(line, flush=True)
        if self._file is not None:
            self._file.write_text(self.results.json())


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="how long (default: 60)")
    parser.add_argument("--once", action="store_true", help="no longer than until everything has run once")
    parser.add_argument(
        "--only",
        action="append",
        choices=PAIRS,
        metavar="PAIR",
        help=f"one of {', '.join(PAIRS)}; not all pairs of versions",
    )
    parser.add_argument(
        "--target",
        choices=("local", "cluster"),
        default="local",
        help="processes on this machine, or the cluster with KServe that KUBECONFIG names (default: local)",
    )
    local, in_cluster = ([one.__name__ for one in group] for group in (SITUATIONS, cluster.SITUATIONS))
    parser.add_argument(
        "--situation",
        action="append",
        choices=[*local, *in_cluster],
        metavar="NAME",
        help=f"one of {', '.join(local)}, in a cluster one of {', '.join(in_cluster)}; not all of them",
    )
    parser.add_argument(
        "--requests", type=int, default=500, help="between one change and the next (default: 500)"
    )
    parser.add_argument("--seed", type=int, help="of the first run's load")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser


@contextlib.contextmanager
def situations_of(target: str, work: Path) -> Iterator[Sequence[Situation]]:
    """Return all situations on this machine, or those in a cluster, which share a namespace."""
    if target == "local":
        yield SITUATIONS
    else:
        with cluster_namespace(work) as namespace:
            yield cluster.in_namespace(namespace)


def main() -> int:
    """Read the command line and run."""
    options = arguments().parse_args()
    # First the pair that needs the right encoding most, in case the time is too short for all.
    names = sorted(options.only or PAIRS, key=lambda name: name != CONTROL_PAIR)
    seed = random.randrange(10**6) if options.seed is None else options.seed
    work = Path(tempfile.mkdtemp(prefix="soak-"))
    soak = Soak(work, options.requests, seed, options.json)
    # SIGTERM prints the results so far, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results = soak.results
    try:
        with situations_of(options.target, work) as all_situations:
            situations = [
                one for one in all_situations if one.__name__ in (options.situation or [one.__name__])
            ]
            asyncio.run(soak.run(options.minutes, names, situations, once=options.once))
        if options.target == "local" and CONTROL_PAIR in names:
            asyncio.run(soak.run_control())
    except NoClusterError as error:
        results.bad.append(str(error))
    except KeyboardInterrupt:
        results.bad.append("interrupted")
    finally:
        print(f"\n{results}\n\n{results.seconds / 60:.0f} minutes, seed {seed}")
    if results.bad:
        print("\n".join(["", "not as it should be:", *results.bad]))
        return 1
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
