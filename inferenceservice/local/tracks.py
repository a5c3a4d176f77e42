"""What the traffic is shifted between: tracks, each a transformer with the predictor that it reaches."""

import asyncio
import contextlib
from collections.abc import Callable

from inferenceservice.local.forwarder import Backend, Forwarder
from inferenceservice.local.ingress import Ingress
from inferenceservice.local.supervisor import LocalServiceError, Running

#: Seconds in which the requests that an old process has must be answered.
DRAIN_TIMEOUT_S = 30
#: Seconds in which connections must have left an old process before it is stopped, as in the spec.
PRE_STOP_S = 10
_POLL_S = 0.1


class Track:
    """A transformer and its predictor, which it reaches through one address, as it does through a Service.

    Attributes
    ----------
    predictor_ports
        Where it does, over REST and over gRPC.
    percent
        Its part of the traffic while it is a canary.
    """

    def __init__(self) -> None:
        self.predictor_ports = (0, 0)
        self.percent = 0
        self._http, self._grpc = Forwarder(), Forwarder()
        self._transformer: Running | None = None
        self._predictor: Running | None = None

    async def open(self) -> None:
        """Listen where the transformer expects its predictor."""
        self.predictor_ports = (await self._http.start(), await self._grpc.start())

    async def close(self) -> None:
        """Stop listening there."""
        await self._http.close()
        await self._grpc.close()

    @property
    def transformer(self) -> Running:
        """Its transformer."""
        return _there(self._transformer)

    @property
    def predictor(self) -> Running:
        """Its predictor."""
        return _there(self._predictor)

    @property
    def processes(self) -> list[Running]:
        """Both, so far as they are there: the transformer first, for it uses the predictor."""
        return [one for one in (self._transformer, self._predictor) if one is not None]

    def put_transformer(self, new: Running) -> list[Running]:
        """Take a transformer, and return what it replaces."""
        old, self._transformer = self._transformer, new
        return [] if old is None else [old]

    def put_predictor(self, new: Running) -> list[Running]:
        """Take a predictor, to which new connections go from now on, and return what it replaces."""
        old, self._predictor = self._predictor, new
        self._http.backends = [Backend(new.address)]
        self._grpc.backends = [Backend(new.grpc_address)]
        return [] if old is None else [old]

    def connections(self, predictor: Running) -> int:
        """How many connections a predictor has from here."""
        return self._http.connections[predictor.address] + self._grpc.connections[predictor.grpc_address]


class Traffic:
    """The ingress of an InferenceService, and all tracks that have, had or will have a part of what it takes.

    Parameters
    ----------
    name, namespace
        Of the InferenceService, for its host names.
    """

    def __init__(self, name: str, namespace: str) -> None:
        self._ingress = Ingress(name, namespace)
        self._tracks: list[Track] = []

    async def start(self, port: int, grpc_port: int) -> None:
        """Let the ingress listen.

        Raises
        ------
        IngressError
            If a port is in use.
        """
        await self._ingress.start(port, grpc_port)

    async def open(self, track: Track) -> None:
        """Take a track in, which gets no traffic yet."""
        self._tracks.append(track)
        await track.open()

    async def remove(self, track: Track) -> None:
        """Close a track that gets no traffic any more."""
        self._tracks.remove(track)
        await track.close()

    def split(self, stable: Track, canary: Track | None) -> None:
        """Let new requests and connections go to a track, and some of them to another one."""
        shares = [(stable, 100 - canary.percent), (canary, canary.percent)] if canary else [(stable, 100)]
        transformers = [
            (one, share)
            for track, share in shares
            for one in track.processes
            if one.component == "transformer"
        ]
        self._ingress.transformer = [Backend(one.address, share) for one, share in transformers]
        self._ingress.transformer_grpc.backends = [
            Backend(one.grpc_address, share) for one, share in transformers
        ]
        self._ingress.predictor = [
            Backend(one.address) for one in stable.processes if one.component == "predictor"
        ]

    async def left(self, old: Running) -> None:
        """Wait until a process has no request and no connection any more, but no longer than a pod would."""
        await _until(lambda: not self._ingress.requests(old.address), DRAIN_TIMEOUT_S)
        await _until(lambda: not self._connections(old), PRE_STOP_S)

    async def close(self) -> None:
        """Stop listening and close what is open."""
        await self._ingress.close()
        for track in self._tracks:
            await track.close()

    def _connections(self, old: Running) -> int:
        clients = self._ingress.transformer_grpc.connections[old.grpc_address]
        return clients + sum(track.connections(old) for track in self._tracks)


def _there(one: Running | None) -> Running:
    if one is None:
        raise LocalServiceError("the service is not running")
    return one


async def _until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait for a condition, but not for ever."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(_POLL_S)
