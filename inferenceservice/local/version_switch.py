"""What the local service serves now, and how something else takes its place: no request fails.

What is new is started beside what serves, gets the traffic when it is ready, and what it has replaced is
drained. A change that is interrupted has happened or not: what it started is stopped, what it replaced is
drained all the same.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from inferenceservice.local.supervisor import Processes, Running
from inferenceservice.local.tracks import Track, Traffic
from inferenceservice.rollout_target import Canary, Progress


class Serving:
    """The tracks of an InferenceService, changed one at a time; see `LocalService`.

    Parameters
    ----------
    processes
        Starts and stops them.
    traffic
        Is shifted between them.

    Attributes
    ----------
    stable, canary
        What serves, and what serves a part of the traffic.
    history
        Bundles that the predictor served before, the last one last; going back takes from it.
    """

    def __init__(self, processes: Processes, traffic: Traffic) -> None:
        self.stable = Track()
        self.canary: Track | None = None
        self.history: list[str] = []
        self._processes = processes
        self._traffic = traffic
        self._retiring: set[asyncio.Task[None]] = set()

    async def start(self, uri: str, progress: Progress) -> None:
        """Serve a first bundle."""
        await self._traffic.open(self.stable)
        await self.change_each(uri, progress)

    async def change_transformer(self, uri: str, progress: Progress) -> None:
        """Put another transformer in front of the predictor."""
        new = await self._processes.transformer(uri, self.stable.predictor_ports, progress)
        old = self.stable.put_transformer(new)
        self._shift()
        await self._retire(old)

    async def change_predictor(self, uri: str, progress: Progress) -> None:
        """Put another predictor behind the transformer: a canary's, if it has this bundle. Ends a canary."""
        canary = self.canary
        if canary is not None and canary.predictor.uri == uri:
            new, old = canary.predictor, [canary.transformer]
        else:
            new = await self._processes.predictor(uri, progress)
            old = [] if canary is None else canary.processes
        replaced = self.stable.put_predictor(new)
        self.canary = None
        self._shift()
        for one in replaced:
            self._remember(one, new)
        await self._retire(old + replaced, [] if canary is None else [canary])

    async def change_both(self, uri: str, progress: Progress) -> None:
        """Let the canary, or what is started beside both, have all traffic at once. Ends a canary.

        The old transformer never meets the new predictor, nor the new one the old.
        """
        canary = self.canary
        if canary is not None and canary.predictor.uri == uri:
            new = canary
        else:
            new = await self._start_track(uri, progress)
        old = [track for track in (self.stable, canary) if track is not None and track is not new]
        self._remember(self.stable.predictor, new.predictor)
        self.stable, self.canary = new, None
        self._shift()
        await self._retire([one for track in old for one in track.processes], old)

    async def change_each(
        self, uri: str, progress: Progress, late_s: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        """Change transformer and predictor, each as soon as it is ready, whichever comes first."""

        async def late(delay_s: float, change: Callable[[str, Progress], Awaitable[None]]) -> None:
            await asyncio.sleep(delay_s)
            await change(uri, progress)

        changes = (self.change_transformer, self.change_predictor)
        changing = [asyncio.create_task(late(*both)) for both in zip(late_s, changes, strict=True)]
        try:
            await asyncio.wait(changing, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            # One that has failed will not be waited for by the other.
            for task in changing:
                task.cancel()
            await asyncio.wait(changing)
        for task in changing:
            if not task.cancelled():
                task.result()

    async def change_canary(self, canary: Canary, progress: Progress) -> None:
        """Give a part of the requests to a predictor that has a transformer of its own."""
        old = self.canary
        if old is not None and old.predictor.uri == canary.uri:
            new = old
        else:
            new = await self._start_track(canary.uri, progress)
        new.percent = canary.percent
        self.canary = new
        self._shift()
        if old is not None and old is not new:
            await self._retire(old.processes, [old])

    async def end_canary(self) -> None:
        """Give all traffic to what is no canary."""
        canary, self.canary = self.canary, None
        self._shift()
        if canary is not None:
            await self._retire(canary.processes, [canary])

    async def settle(self) -> None:
        """Wait until everything that was replaced has ended."""
        if self._retiring:
            await asyncio.wait(self._retiring)

    async def close(self) -> None:
        """Stop every process: first the transformers, which answer what they have accepted."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self._processes.close()
        await self._traffic.close()

    async def _start_track(self, uri: str, progress: Progress) -> Track:
        """Start a predictor, and a transformer that meets no other."""
        track = Track()
        try:
            await self._traffic.open(track)
            track.put_predictor(await self._processes.predictor(uri, progress))
            ports = track.predictor_ports
            track.put_transformer(await self._processes.transformer(uri, ports, progress))
        except BaseException:
            await self._retire(track.processes, [track])
            raise
        return track

    def _shift(self) -> None:
        """Let new requests and connections go where they should go now."""
        self._traffic.split(self.stable, self.canary)

    def _remember(self, old: Running, new: Running) -> None:
        if self.history[-1:] == [new.uri]:
            self.history.pop()
        elif old.uri != new.uri:
            self.history.append(old.uri)

    async def _retire(self, processes: Sequence[Running], tracks: Sequence[Track] = ()) -> None:
        """Stop what gets nothing new, when what it has is done; that goes on if the change is interrupted."""
        retiring = asyncio.create_task(self._stop(processes, tracks))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)
        await asyncio.shield(retiring)

    async def _stop(self, processes: Sequence[Running], tracks: Sequence[Track]) -> None:
        for one in processes:
            await self._traffic.left(one)
            await self._processes.stop(one)
        for track in tracks:
            await self._traffic.remove(track)
