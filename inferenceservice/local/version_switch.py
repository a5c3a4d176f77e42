"""Changes of the versions that the local service serves, without a failed request.

A change starts the new processes beside the old ones, sends the traffic to them when they are ready, and
drains and stops the old ones. A change that is cancelled is either complete or has no effect: processes that
it started are stopped, and processes that it replaced are drained and stopped.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from inferenceservice.local.running_process import RunningProcess
from inferenceservice.local.supervisor import ProcessSupervisor
from inferenceservice.local.tracks import Track, TrackRouter
from inferenceservice.rollout_target import Canary, Progress
from storage.uris import shown


class VersionSwitch:
    """Changes the tracks of an InferenceService. Make one change at a time; see `LocalService`.

    Parameters
    ----------
    supervisor
        Starts and stops the processes.
    router
        Splits the traffic between the tracks.
    on_switch
        Called when other versions serve.

    Attributes
    ----------
    stable, canary
        The track that serves, and the one that serves a share of the traffic.
    history
        Bundles that the predictor served before, newest last. A rollback removes the last one.
    """

    def __init__(
        self, supervisor: ProcessSupervisor, router: TrackRouter, on_switch: Callable[[], None] = lambda: None
    ) -> None:
        self.stable = Track()
        self.canary: Track | None = None
        self.history: list[str] = []
        self._supervisor = supervisor
        self._router = router
        self._on_switch = on_switch
        #: Tracks that are being started.
        self._starting: list[Track] = []
        self._draining: set[asyncio.Task[None]] = set()

    async def start(self, uri: str, progress: Progress) -> None:
        """Start to serve a first bundle."""
        await self._router.add(self.stable)
        await self.change_each(uri, progress)

    async def change_transformer(self, uri: str, progress: Progress) -> None:
        """Replace the transformer by one with another bundle."""
        # Without a predictor that runs, no transformer gets ready. Replacing one must still be possible.
        # The transformer notices only after some seconds that its predictor has gone.
        ready = all(one.running and one.ready for one in self.stable.processes)
        ports = self.stable.predictor_ports
        new = await self._supervisor.start_transformer(uri, ports, progress, ready=ready)
        old = self.stable.replace_transformer(new)
        self._switch()
        await self._drain_and_stop(old)

    async def change_predictor(self, uri: str, progress: Progress) -> None:
        """Replace the predictor: by the canary's if that has the bundle, else by a new one. Ends a canary."""
        canary = self.canary
        if canary is not None and canary.predictor.uri == uri:
            new, old = canary.predictor, [canary.transformer]
        else:
            new = await self._supervisor.start_predictor(uri, progress)
            old = [] if canary is None else canary.processes
        replaced = self.stable.replace_predictor(new)
        self.canary = None
        for one in replaced:
            self._record(one, new)
        self._switch()
        await self._drain_and_stop(old + replaced, [] if canary is None else [canary])

    async def change_both(self, uri: str, progress: Progress) -> None:
        """Send all traffic to the canary if that has the bundle, else to a new track. Ends a canary.

        No transformer ever calls the predictor of the other track.
        """
        canary = self.canary
        if canary is not None and canary.predictor.uri == uri:
            new = canary
        else:
            new = await self._start_track(uri, progress)
        old = [track for track in (self.stable, canary) if track is not None and track is not new]
        self._record(self.stable.predictor, new.predictor)
        self.stable, self.canary = new, None
        self._switch()
        await self._drain_and_stop([one for track in old for one in track.processes], old)

    async def change_each(
        self, uri: str, progress: Progress, late_s: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        """Replace transformer and predictor independently, each as soon as the new one is ready.

        Parameters
        ----------
        late_s
            Seconds by which the start of the transformer and of the predictor is delayed.
        """

        async def late(delay_s: float, change: Callable[[str, Progress], Awaitable[None]]) -> None:
            await asyncio.sleep(delay_s)
            await change(uri, progress)

        changes = (self.change_transformer, self.change_predictor)
        changing = [asyncio.create_task(late(*both)) for both in zip(late_s, changes, strict=True)]
        try:
            await asyncio.wait(changing, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            # If one has failed, the other is cancelled.
            for task in changing:
                task.cancel()
            await asyncio.wait(changing)
        for task in changing:
            if not task.cancelled():
                task.result()

    async def change_canary(self, canary: Canary, progress: Progress) -> None:
        """Send a share of the traffic to a separate track with the canary's bundle."""
        old = self.canary
        if old is not None and old.predictor.uri == canary.uri:
            new = old
        else:
            new = await self._start_track(canary.uri, progress)
        new.percent = canary.percent
        self.canary = new
        self._switch()
        if old is not None and old is not new:
            await self._drain_and_stop(old.processes, [old])

    async def end_canary(self) -> None:
        """Send all traffic to the stable track, and stop the canary."""
        canary, self.canary = self.canary, None
        self._switch()
        if canary is not None:
            await self._drain_and_stop(canary.processes, [canary])

    async def wait_until_drained(self) -> None:
        """Wait until all replaced processes have stopped."""
        if self._draining:
            await asyncio.wait(self._draining)

    async def close(self) -> None:
        """Stop all processes, then the ingress."""
        for task in self._draining:
            task.cancel()
        await asyncio.gather(*self._draining, return_exceptions=True)
        await self._supervisor.close()
        await self._router.close()

    async def _start_track(self, uri: str, progress: Progress) -> Track:
        """Start a predictor, and a transformer that calls this predictor only."""
        track = Track()
        self._starting.append(track)
        try:
            await self._router.add(track)
            track.replace_predictor(await self._supervisor.start_predictor(uri, progress))
            ports = track.predictor_ports
            track.replace_transformer(await self._supervisor.start_transformer(uri, ports, progress))
        except BaseException:
            self._starting.remove(track)
            await self._drain_and_stop(track.processes, [track])
            raise
        self._starting.remove(track)
        return track

    def processes(self) -> list[RunningProcess]:
        """Return the processes that should run: not those that were replaced."""
        tracks = [self.stable, *([self.canary] if self.canary else []), *self._starting]
        return [one for track in tracks for one in track.processes]

    def describe(self, one: RunningProcess) -> tuple[str, str]:
        """Return the name of a process, and what to do if it keeps ending."""
        name = f"{one.component} of {one.bundle.version}"
        if self.canary is not None and one in self.canary.processes:
            return f"the canary's {name}", "`placement rollback` ends the canary"
        if self.history:
            return f"the {name}", f"`placement rollback` returns to {shown(self.history[-1])}"
        return f"the {name}", "`placement rollout URI` serves another version"

    def route(self) -> None:
        """Send new requests and connections to the current tracks, as far as they are ready."""
        self._router.split(self.stable, self.canary)

    def _switch(self) -> None:
        """Send new requests and connections to other tracks or processes."""
        self.route()
        self._on_switch()

    def _record(self, old: RunningProcess, new: RunningProcess) -> None:
        """Record a change of the predictor; a change to the last bundle in the history is a rollback."""
        if self.history[-1:] == [new.uri]:
            self.history.pop()
        elif old.uri != new.uri:
            self.history.append(old.uri)

    async def _drain_and_stop(
        self, processes: Sequence[RunningProcess], tracks: Sequence[Track] = ()
    ) -> None:
        """Drain and stop processes that get no new requests. This goes on if the caller is cancelled."""
        draining = asyncio.create_task(self._stop_drained(processes, tracks))
        self._draining.add(draining)
        draining.add_done_callback(self._draining.discard)
        await asyncio.shield(draining)

    async def _stop_drained(self, processes: Sequence[RunningProcess], tracks: Sequence[Track]) -> None:
        for one in processes:
            await self._router.drain(one)
            await self._supervisor.stop(one)
        for track in tracks:
            await self._router.remove(track)
