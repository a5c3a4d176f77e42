"""File descriptors: a reserve for the predictor's connections, and the rest shared by the clients.

Without it, clients that keep their connections open take all descriptors, and no connection to the predictor
can be renewed.
"""

import resource
from dataclasses import dataclass

from transformer.settings import Settings

#: Descriptors for everything besides connections: standard streams, event loops, gRPC, DNS, files. An idle
#: process has about 20.
BASE = 32
#: Descriptors for each connection to the predictor: its own, its successor's, and one that is being closed.
PER_PREDICTOR_CONNECTION = 3
#: Maximum client connections, however many descriptors there are, because of their memory.
MAX_CLIENTS = 12_000
#: Minimum client connections. With fewer descriptors than these need, the reserve is smaller.
MIN_CLIENTS = 8


@dataclass(frozen=True)
class ClientLimits:
    """Maximum connections of a process's clients.

    Attributes
    ----------
    rest
        Over REST.
    refused
        Over REST, besides these: connections that are being closed after a 503.
    grpc
        Over gRPC.
    """

    rest: int
    refused: int
    grpc: int


def raise_limit() -> None:
    """Raise the process's limit on open files from the soft to the hard limit; child processes inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def client_limits(settings: Settings) -> ClientLimits:
    """Return the limits of each process that serves clients.

    One process serves both protocols, and gRPC gets a quarter. With several workers, a worker serves only
    REST and the first process only gRPC.
    """
    clients = _clients(settings.predictor_connections)
    refused = clients // 8
    if settings.workers > 1:
        return ClientLimits(rest=clients - refused, refused=refused, grpc=clients)
    grpc = clients // 4 if settings.enable_grpc else 0
    return ClientLimits(rest=clients - grpc - refused, refused=refused, grpc=grpc)


def _clients(predictor_connections: int) -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_CLIENTS
    left = soft - BASE - PER_PREDICTOR_CONNECTION * predictor_connections
    return min(max(left, MIN_CLIENTS), MAX_CLIENTS)
