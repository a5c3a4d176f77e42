"""Ports that parallel test processes do not take from each other.

`predictor.process.free_ports` asks the kernel for free ports and closes them again, so that a server that
starts seconds later can listen there. Until then the kernel may give them to any other socket: with several
test processes, one run in ten would fail. Ports below the kernel's range are given to nobody else.
"""

import itertools
import os
import random
import socket
import types
from typing import Any

from predictor import process

#: Above the ports of known services and below Linux's `ip_local_port_range`.
FIRST, LAST = 20000, 32767


class _Socket(socket.socket):
    """A socket that looks for a free port itself when the caller leaves the choice to the kernel."""

    _ports = itertools.count(random.Random(os.getpid()).randrange(FIRST, LAST))

    def bind(self, address: Any) -> None:
        host, port = address
        if port:
            super().bind(address)
            return
        for number in self._ports:
            try:
                super().bind((host, FIRST + number % (LAST - FIRST)))
            except OSError:
                continue
            return


def keep_ports_apart() -> None:
    """Let `free_ports` pick ports below the kernel's range, each process from another place on."""
    own = types.SimpleNamespace(**{**vars(socket), "socket": _Socket})
    vars(process)["socket"] = own
