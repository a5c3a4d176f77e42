"""Faults of the predictor, of the network to it, and of clients, one after another, under steady load.

There is a real transformer in front of a faulty proxy in front of a real model server. During a fault, each
request gets the right answer or a status that the table in docs/api.md has for the fault. After it, all
requests get right answers again, and the transformer holds no more connections, files or memory than before.
"""

import contextlib
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

from inferenceservice.local.launch import TransformerProcess
from predictor.process import PredictorProcess, free_ports
from tests.soak.faults import CLIENTS, DEADLINE_S, FAULTS, GIVE_UP_S, WAITING, Fault, Scene
from tests.soak.rollouts import Outcome, some_more
from tests.support.async_clients import NO_ANSWER, status_of
from tests.support.async_processes import addresses, running_predictor, running_transformer
from tests.support.faulty_proxy import FaultyProxy
from tests.support.load import Tally, under_load
from tests.support.prometheus_samples import read_samples, sum_of
from tests.support.version_pairs import VersionPair
from tests.support.waiting import wait_until
from transformer.batching.retry_budget import EARNED, MAX_SAVED
from transformer.settings import Settings

#: Minimum number of requests during a fault, and number of clients of each protocol.
REQUESTS, CLIENTS_EACH = 20, 4
#: Seconds until all connections must be usable again. A verification waits up to 10 s for a response.
RECOVERY_S = 20
#: Files that the process may open when it first needs them. A leak leaves more: each fault is met often.
OPENED_LATE = 2
#: Connections to the predictor.
CONNECTIONS = Settings.predictor_connections
#: At the end, the throughput is compared with a new transformer's: number of comparisons, minimum ratio,
#: and number of requests. The short form has too few requests for it.
COMPARED, PACE, PACE_REQUESTS = 5, 0.8, 500
#: Maximum growth of the transformer in bytes. The allocator keeps the memory of the largest requests, so
#: growth is measured from after the first requests of each kind.
GROWTH = 32 * 2**20
COLUMNS = ("times", "met", "requests", "200", "400", "404", "413", "502", "503", "504", "wrong", NO_ANSWER)


@dataclass
class Record:
    """The figures of outages.

    Attributes
    ----------
    faults
        Counts of each fault.
    memory
        For each run, the transformer's memory in bytes before and after all faults.
    pace
        For each run, answers per second after all faults, and of a newly started transformer.
    calls, sent_again
        Number of calls to the predictor, and of requests that were in more than one.
    slowest_recovery_s
        Longest time from a fault's end until all connections are usable, in seconds.
    slowest_s
        Longest time of a request, by status.
    """

    faults: dict[str, Counter[str]] = field(default_factory=dict)
    memory: list[tuple[int, int]] = field(default_factory=list)
    pace: list[tuple[float, float]] = field(default_factory=list)
    calls: int = 0
    sent_again: int = 0
    slowest_recovery_s: float = 0.0
    slowest_s: dict[str, float] = field(default_factory=dict)

    def count(self, name: str, met: int, tally: Tally) -> None:
        """Count one run of a fault."""
        counts = self.faults.setdefault(name, Counter())
        wrong = sum(map(len, tally.faults.values()))
        counts.update({"times": 1, "met": met, "requests": tally.requests, "wrong": wrong})
        counts["200"] += tally.answered.total()
        for reason, often in tally.failed.items():
            counts[_column(reason)] += often
        self._slowest(tally.slowest_s)

    def _slowest(self, seconds: dict[str, float]) -> None:
        for status, slowest in seconds.items():
            column = _column(status)
            self.slowest_s[column] = max(slowest, self.slowest_s.get(column, 0.0))

    def add(self, other: "Record") -> None:
        """Add the figures of another run."""
        for name, counts in other.faults.items():
            self.faults.setdefault(name, Counter()).update(counts)
        self.memory = self.memory + other.memory
        self.pace = self.pace + other.pace
        self.calls += other.calls
        self.sent_again += other.sent_again
        self.slowest_recovery_s = max(self.slowest_recovery_s, other.slowest_recovery_s)
        self._slowest(other.slowest_s)

    def facts(self) -> dict[str, object]:
        """Return the figures for JSON."""
        return {**vars(self), "faults": {name: dict(counts) for name, counts in self.faults.items()}}

    def __str__(self) -> str:
        """Return a table with a row for each fault."""
        lines = [f"| fault | {' | '.join(COLUMNS)} |", f"|---{'|--:' * len(COLUMNS)}|"]
        for name, counts in [*self.faults.items(), ("**all**", sum(self.faults.values(), Counter()))]:
            lines.append(f"| {name} | {' | '.join(f'{counts[column]:,}' for column in COLUMNS)} |")
        memory = ", ".join(f"{start >> 20} → {end >> 20} MiB" for start, end in self.memory)
        pace = ", ".join(f"{old:.0f}, {new:.0f}" for old, new in self.pace)
        slowest = ", ".join(f"{status} {seconds:.1f}" for status, seconds in sorted(self.slowest_s.items()))
        lines += [
            "",
            f"Calls to the predictor: {self.calls:,}; requests sent again: {self.sent_again:,}; slowest "
            f"recovery: {self.slowest_recovery_s:.1f} s.",
            f"Slowest request, in seconds, by status: {slowest}.",
            f"The transformer's memory, before and after: {memory}; answers a second, after all and of a new "
            f"one: {pace}.",
        ]
        return "\n".join(lines)


def _column(reason: str) -> str:
    """Return the column that counts a reason."""
    return NO_ANSWER if reason.startswith(NO_ANSWER) else reason[:3]


@dataclass
class Survived(Outcome):
    """An outcome with the figures of its faults."""

    record: Record = field(default_factory=Record)


async def outages(pair: VersionPair, run: Path, some: int, faults: Sequence[Fault] = FAULTS) -> Survived:
    """Run all faults in random order, once for each hundred of `some`."""
    (port,) = free_ports(1)
    faulty = FaultyProxy(port)
    options = (f"--predictor_request_timeout_seconds={DEADLINE_S}", f"--max_waiting_rows={WAITING}")
    survived = Survived(Tally(), record=Record())
    every = [*faults, *CLIENTS]
    async with contextlib.AsyncExitStack() as stack:

        async def start_predictor() -> PredictorProcess:
            return await stack.enter_async_context(
                running_predictor(pair.old, run / "predictor.log", http_port=port)
            )

        started = await start_predictor()
        await faulty.start()
        try:
            log = run / "transformer.log"
            async with running_transformer(pair.old, faulty.port, log, *options) as transformer:
                scene = Scene(pair, transformer, faulty, started, start_predictor)
                for fault in CLIENTS:
                    await one_fault(scene, fault, survived)
                before = await left_over(scene, None)
                for _ in range(max(1, some // 100)):
                    for fault in random.sample(every, len(every)):
                        await one_fault(scene, fault, survived)
                async with running_transformer(pair.old, faulty.port, run / "new.log", *options) as new:
                    paces = await answers_a_second(scene, new, some)
                survived.record.pace = [
                    (median(old for old, _ in paces), median(other for _, other in paces))
                ]
                # A transformer that has become slow is slow in every turn; another job on the machine is not.
                survived.expect(
                    some < PACE_REQUESTS or any(old >= PACE * other for old, other in paces),
                    f"answers a second, and of a new one: {paces}",
                )
                await account(scene, before, survived)
        finally:
            await faulty.stop()
        survived.expect("Traceback" not in log.read_text(), f"the transformer failed, see {log}")
    survived.unexpected += [*Outcome(survived.tally).unexpected, *scene.bad]
    statuses: Counter[str] = Counter()
    for reason, often in survived.tally.failed.items():
        statuses[status_of(reason)] += often
    survived.tally.failed = statuses
    return survived


async def one_fault(scene: Scene, fault: Fault, survived: Survived) -> None:
    """Run a fault under load, and check that the transformer recovers."""
    scene.acts = scene.unheard = 0
    spoiled_before, calls_before = scene.proxy.spoiled, scene.proxy.calls
    again_before = await sent_again(scene)

    def met() -> int:
        return scene.acts + scene.proxy.spoiled - spoiled_before

    def enough(tally: Tally) -> bool:
        return tally.requests >= fault.lasts * REQUESTS and met() >= fault.few

    async with under_load_of(scene) as scene.tally:
        async with fault.happens(scene):
            await scene.tally.reach(enough)
        ended = time.monotonic()
        await recovered(addresses(scene.transformer)[0])
        took_s = time.monotonic() - ended
    during = scene.tally
    async with under_load_of(scene) as after:
        await some_more(after, REQUESTS)
    record = survived.record
    record.count(fault.name, met(), during)
    record.count("*nothing, after each*", 0, after)
    calls, again = scene.proxy.calls - calls_before, await sent_again(scene) - again_before
    record.calls += calls
    record.sent_again += again.total()
    record.slowest_recovery_s = max(record.slowest_recovery_s, took_s)
    survived.unexpected += unexpected(fault, during, after)
    survived.tally.add(during)
    survived.tally.add(after)
    asked = during.requests + after.requests + scene.unheard
    answered = during.answered.total() + after.answered.total() + scene.unheard
    # A dropped request is sent again with the others of its call, then alone, within the retry budget.
    survived.expect(
        again["dropped"] <= 2 * asked and calls <= asked + MAX_SAVED + EARNED * answered,
        f"{fault.name}: {calls} calls for {asked} requests, sent again: {dict(again)}",
    )


def under_load_of(
    scene: Scene, transformer: TransformerProcess | None = None, pause_s: float = 0.01
) -> AbstractAsyncContextManager[Tally]:
    """Put steady load on the transformer of a scene, or on another one."""
    return under_load(
        scene.pair,
        *addresses(transformer or scene.transformer),
        may_answer=scene.may_answer,
        clients=CLIENTS_EACH,
        pause_s=pause_s,
        give_up_s=GIVE_UP_S,
    )


def unexpected(fault: Fault, during: Tally, after: Tally) -> list[str]:
    """Return the statuses that the fault does not allow."""
    inexcusable = {
        reason: often for reason, often in during.failed.items() if status_of(reason) not in fault.statuses
    }
    return [
        f"{fault.name}, {when}: {dict(failed)}"
        for when, failed in (("during it", inexcusable), ("after it", after.failed))
        if failed
    ]


async def recovered(url: str) -> None:
    """Wait until all connections to the predictor are usable."""

    async def all_usable() -> bool:
        samples = await read_samples(url)
        return sum_of(samples, "transformer_predictor_connections", state="usable") >= CONNECTIONS

    await wait_until(all_usable, timeout_s=RECOVERY_S, poll_s=0.05)


@dataclass(frozen=True)
class Held:
    """Open connections and files of a process, and its memory, while it is idle."""

    connections: int
    #: Targets of the file descriptors, such as ``socket:[47]``.
    files: tuple[str, ...]
    memory: int

    @classmethod
    def by(cls, process: TransformerProcess) -> "Held":
        """Return the current figures of a process."""
        held = psutil.Process(process.pid)
        connections = held.connections(kind="tcp")
        return cls(
            sum(one.status != psutil.CONN_LISTEN for one in connections),
            _files(process.pid),
            held.memory_info().rss,
        )

    def has_no_more_files_than(self, before: "Held") -> bool:
        """Return True if no more files are open than before, but for those that were opened at first use."""
        return len(self.files) <= len(before.files) + OPENED_LATE


def _files(pid: int) -> tuple[str, ...]:
    targets = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed just now
            targets.append(str(descriptor.readlink()))
    return tuple(sorted(targets))


async def left_over(scene: Scene, before: Held | None) -> Held:
    """Wait until the transformer holds no more than before, and return what it holds."""

    def nothing_left() -> bool:
        held = Held.by(scene.transformer)
        return held.connections == CONNECTIONS and (before is None or held.has_no_more_files_than(before))

    with contextlib.suppress(TimeoutError):
        await wait_until(nothing_left, timeout_s=RECOVERY_S, poll_s=0.1)
    return Held.by(scene.transformer)


async def answers_a_second(scene: Scene, new: TransformerProcess, requests: int) -> list[tuple[float, float]]:
    """Return answers per second of the transformer and of a new one, measured in turns."""

    async def measure(transformer: TransformerProcess) -> float:
        async with under_load_of(scene, transformer, pause_s=0.0) as tally:
            await some_more(tally, REQUESTS)
            start, before = time.monotonic(), tally.answered.total()
            await some_more(tally, requests)
            return (tally.answered.total() - before) / (time.monotonic() - start)

    return [(await measure(scene.transformer), await measure(new)) for _ in range(COMPARED)]


async def sent_again(scene: Scene) -> Counter[str]:
    """Return the number of requests that were sent again, by reason."""
    samples = await read_samples(addresses(scene.transformer)[0])
    name = "transformer_predictor_retries_total"
    return Counter({reason: int(sum_of(samples, name, reason=reason)) for reason in ("dropped", "halved")})


async def account(scene: Scene, before: Held, survived: Survived) -> None:
    """Check that nothing is left of all the faults."""
    after = await left_over(scene, before)
    survived.record.memory = [(before.memory, after.memory)]
    survived.expect(
        after.connections == CONNECTIONS and after.has_no_more_files_than(before),
        f"something is left open: {before} before, {after} after",
    )
    survived.expect(
        after.memory <= before.memory + GROWTH, f"memory has grown: {before} before, {after} after"
    )
