"""Restarts of the local service's processes with back-off, and their readiness, as a kubelet does it."""

import asyncio

from inferenceservice.local.running_process import End, LocalServiceError, RunningProcess
from inferenceservice.local.supervisor import ProcessSupervisor
from inferenceservice.local.version_switch import VersionSwitch
from inferenceservice.rollout_target import Progress

#: Seconds before the first restart, and at most; each end in a row doubles them. A kubelet's 10 and 300 are
#: long for a person who watches.
FIRST_DELAY_S, MAX_DELAY_S = 0.5, 30.0
_MAX_DOUBLINGS = 10
#: Seconds of service after which earlier ends are forgotten.
FORGET_S = 60.0
#: Ends in a row from which on the report says what to do.
REPEATED = 3
#: Seconds between checks of a transformer's readiness, and failures in a row after which it is not ready.
READINESS_PERIOD_S, READINESS_FAILURES = 0.5, 2
#: Seconds between checks of liveness, and failures in a row after which a process is restarted: the spec's.
LIVENESS_PERIOD_S, LIVENESS_FAILURES = 10.0, 3
_POLL_S = 0.1


class Restarter:
    """Restarts each process that ends, until it is stopped.

    Parameters
    ----------
    supervisor
        Restarts a process.
    versions
        The processes that should run, and the traffic between them.
    report
        Gets a line for each end and each restart.
    """

    def __init__(self, supervisor: ProcessSupervisor, versions: VersionSwitch, report: Progress) -> None:
        self._supervisor = supervisor
        self._versions = versions
        self._report = report

    async def run(self) -> None:
        """Follow all processes until this is cancelled."""
        following: dict[RunningProcess, asyncio.Task[None]] = {}
        try:
            while True:
                for one in self._versions.processes():
                    if one not in following or following[one].done():
                        following[one] = asyncio.create_task(self._follow(one))
                following = {one: task for one, task in following.items() if not task.done()}
                await asyncio.sleep(_POLL_S)
        finally:
            for task in following.values():
                task.cancel()
            await asyncio.gather(*following.values(), return_exceptions=True)

    async def _follow(self, one: RunningProcess) -> None:
        """Restart a process whenever it ends, until it is replaced."""
        while one in self._versions.processes():
            since = _now()
            end = await self._wait_for_end(one)
            if end is not None and one in self._versions.processes():
                one.failures = 1 if _now() - since >= FORGET_S else one.failures + 1
                one.last_end = end
                # Its own task: the supervisor cancels it if the process is to be stopped.
                one.restarting = asyncio.create_task(self._restart(one))
                await asyncio.wait([one.restarting])

    async def _wait_for_end(self, one: RunningProcess) -> End | None:
        """Check a process until it ends or does not answer; return None once it is replaced."""
        readiness_checked = liveness_checked = _now()
        not_ready = not_live = 0
        while one in self._versions.processes():
            await asyncio.sleep(_POLL_S)
            if (end := one.end()) is not None:
                return end
            if one.component == "transformer" and _now() - readiness_checked >= READINESS_PERIOD_S:
                not_ready = 0 if await asyncio.to_thread(one.process.ready) else not_ready + 1
                if not_ready in {0, READINESS_FAILURES}:
                    self._set_ready(one, ready=not not_ready)
                readiness_checked = _now()
            if _now() - liveness_checked >= LIVENESS_PERIOD_S:
                not_live = 0 if await asyncio.to_thread(one.process.live) else not_live + 1
                liveness_checked = _now()
                if not_live == LIVENESS_FAILURES:
                    return End.now(f"gave no answer to {not_live} liveness checks in a row")
        return None

    async def _restart(self, one: RunningProcess) -> None:
        """Restart a process until it is there again."""
        one.ready = False
        self._versions.route()
        try:
            while not await self._restarted(one):
                one.failures += 1
        finally:
            one.restarting = None
        one.ready = one.component == "predictor"
        self._versions.route()
        name, _ = self._versions.describe(one)
        self._report(f"{name} runs again, after restart {one.restarts}")

    async def _restarted(self, one: RunningProcess) -> bool:
        """Restart a process after the back-off; return False if it did not start."""
        delay_s = min(FIRST_DELAY_S * 2 ** min(one.failures - 1, _MAX_DOUBLINGS), MAX_DELAY_S)
        self._report(self._end_in_words(one, delay_s))
        await asyncio.sleep(delay_s)
        one.restarts += 1
        ended = one.process
        try:
            await self._supervisor.restart(one)
        except LocalServiceError as error:
            end = one.end() if one.process is not ended else None
            one.last_end = end or End.now("did not start", str(error))
            return False
        return True

    def _end_in_words(self, one: RunningProcess, delay_s: float) -> str:
        name, way_out = self._versions.describe(one)
        text = f"{name} {one.last_end}"
        if one.failures < REPEATED:
            return f"{text}; restart in {delay_s:g} s"
        return f"{text}: {one.failures} times in a row, restart in {delay_s:g} s; {one.advice()}; {way_out}"

    def _set_ready(self, one: RunningProcess, *, ready: bool) -> None:
        if one.ready != ready:
            one.ready = ready
            self._versions.route()


def _now() -> float:
    return asyncio.get_running_loop().time()
