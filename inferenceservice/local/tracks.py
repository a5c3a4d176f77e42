"""Tracks (stable and canary), each a transformer with its predictor, and the router that splits traffic."""

import asyncio
import contextlib
from collections.abc import Callable

from inferenceservice.local.forwarder import DOWN, Backend, Forwarder
from inferenceservice.local.ingress import Ingress
from inferenceservice.local.running_process import LocalServiceError, RunningProcess

#: Seconds for which a replaced process may finish its requests.
DRAIN_TIMEOUT_S = 30
#: Seconds for which connections may leave a replaced process: the preStop pause in the spec.
PRE_STOP_S = 10
_POLL_S = 0.1


class Track:
    """A transformer and its predictor, with forwarders between them in place of a Kubernetes Service.

    Attributes
    ----------
    predictor_ports
        Ports of the forwarders, for REST and for gRPC.
    percent
        Share of the traffic if the track is a canary.
    """

    def __init__(self) -> None:
        self.predictor_ports = (0, 0)
        self.percent = 0
        self._http, self._grpc = Forwarder(), Forwarder()
        self._transformer: RunningProcess | None = None
        self._predictor: RunningProcess | None = None

    async def open(self) -> None:
        """Start the forwarders."""
        self.predictor_ports = (await self._http.start(), await self._grpc.start())

    async def close(self) -> None:
        """Close the forwarders."""
        await self._http.close()
        await self._grpc.close()

    @property
    def transformer(self) -> RunningProcess:
        """The transformer; raises LocalServiceError if there is none yet."""
        return _require(self._transformer)

    @property
    def predictor(self) -> RunningProcess:
        """The predictor; raises LocalServiceError if there is none yet."""
        return _require(self._predictor)

    @property
    def processes(self) -> list[RunningProcess]:
        """Transformer and predictor, as far as they exist, in the order in which to stop them."""
        return [one for one in (self._transformer, self._predictor) if one is not None]

    def replace_transformer(self, new: RunningProcess) -> list[RunningProcess]:
        """Set the transformer, and return the process that it replaces, if any."""
        old, self._transformer = self._transformer, new
        return [] if old is None else [old]

    def replace_predictor(self, new: RunningProcess) -> list[RunningProcess]:
        """Set the predictor that new connections go to, and return the process that it replaces, if any."""
        old, self._predictor = self._predictor, new
        self.connect()
        return [] if old is None else [old]

    def connect(self) -> None:
        """Send new connections to the predictor, or to none while it is not ready."""
        ready = [one for one in self.processes if one.component == "predictor" and one.ready]
        self._http.backends = [Backend(one.address) for one in ready]
        self._grpc.backends = [Backend(one.grpc_address) for one in ready]

    @property
    def ready(self) -> bool:
        """True if both components run and are ready."""
        return len(self.processes) == 2 and all(one.running and one.ready for one in self.processes)

    def connection_count(self, predictor: RunningProcess) -> int:
        """Return the number of connections to a predictor."""
        return self._http.connections[predictor.address] + self._grpc.connections[predictor.grpc_address]


class TrackRouter:
    """The ingress of an InferenceService and all tracks behind it, including those without traffic.

    Parameters
    ----------
    name, namespace
        Name and namespace of the InferenceService, for its host names.
    """

    def __init__(self, name: str, namespace: str) -> None:
        self._ingress = Ingress(name, namespace)
        self._tracks: list[Track] = []

    async def start(self, port: int, grpc_port: int) -> None:
        """Start the ingress.

        Raises
        ------
        IngressError
            If a port is in use.
        """
        await self._ingress.start(port, grpc_port)

    async def add(self, track: Track) -> None:
        """Open a track. It gets no traffic yet."""
        self._tracks.append(track)
        await track.open()

    async def remove(self, track: Track) -> None:
        """Close a track that no longer gets traffic."""
        self._tracks.remove(track)
        await track.close()

    def split(self, stable: Track, canary: Track | None) -> None:
        """Send new requests and connections to the stable track, and the canary's share to the canary.

        While the canary is not ready, its share goes to the stable track, and so do the clients of its gRPC
        connections. The share of a stable track that is not ready goes nowhere: nobody has decided that all
        requests go to the canary.
        """
        for track in self._tracks:
            track.connect()
        shares = [(stable, 100)]
        if canary is not None and canary.ready:
            shares = [(stable, 100 - canary.percent), (canary, canary.percent)]
        elif canary is not None:
            self._ingress.transformer_grpc.disconnect(canary.transformer.grpc_address)
        transformers = [
            (one, share)
            for track, share in shares
            for one in track.processes
            if one.component == "transformer"
        ]
        self._ingress.transformer = [_backend(one, one.address, share) for one, share in transformers]
        self._ingress.transformer_grpc.backends = [
            _backend(one, one.grpc_address, share) for one, share in transformers
        ]
        self._ingress.transformer_by_version = {
            track.predictor.bundle.version: [_backend(track.transformer, track.transformer.address)]
            for track in (stable, canary)
            if track is not None and len(track.processes) == 2
        }
        self._ingress.predictor = [
            Backend(one.address) for one in stable.processes if one.component == "predictor" and one.ready
        ]

    async def drain(self, old: RunningProcess) -> None:
        """Wait until a process has no requests and no connections, for at most as long as a pod would."""
        await _wait_until(lambda: not self._ingress.requests_in_flight(old.address), DRAIN_TIMEOUT_S)
        await _wait_until(lambda: not self._connection_count(old), PRE_STOP_S)

    async def close(self) -> None:
        """Close the ingress and all tracks."""
        await self._ingress.close()
        for track in self._tracks:
            await track.close()

    def _connection_count(self, old: RunningProcess) -> int:
        clients = self._ingress.transformer_grpc.connections[old.grpc_address]
        return clients + sum(track.connection_count(old) for track in self._tracks)


def _backend(one: RunningProcess, address: str, share: float = 1.0) -> Backend:
    return Backend(address if one.running else DOWN, share)


def _require(one: RunningProcess | None) -> RunningProcess:
    if one is None:
        raise LocalServiceError("the service is not running")
    return one


async def _wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait until a condition is true or the time is over."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(_POLL_S)
