"""Where systems meet: their servers, started once, of which only one system's run at a time."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final, Self

from benchmarks.asking import Judge, NoAnswer, Request, encode
from benchmarks.kinds import KINDS, Place
from benchmarks.models import FOREST
from benchmarks.servers import Server
from benchmarks.stub_predictor import PROBABILITY
from benchmarks.systems import BY_NAME, PREDICTOR, SYSTEMS, System
from training.candidates import Candidate

#: Seconds for a system to come back to speed after its pause.
_WARM_UP_S: Final = 0.3
#: Seconds that it has to answer at all.
_WAKE_S: Final = 30
_POLL_S: Final = 0.02
#: Share of one processor up to which a system rests, and how long that is looked at.
_IDLE: Final = 0.11
_MOMENT_S: Final = 0.2


class Arena:
    """Servers of the systems, which end with the ``with`` block.

    Parameters
    ----------
    candidates
        Those whose answers are checked.
    """

    def __init__(self, place: Place, candidates: Sequence[Candidate]) -> None:
        self._place = place
        self._servers: dict[str, Server] = {}
        self._stack = ExitStack()
        self._judges = {name: Judge.of(model, candidates) for name, model in place.models.items()}
        self._stub_judge = Judge(candidates, [PROBABILITY] * len(candidates))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, system: System) -> float:
        """Start what a system needs that does not run yet, and let it warm up.

        Returns
        -------
        float
            Seconds from the start of the system's own server to its first right answer.

        Raises
        ------
        ServerError, NoAnswer, WrongAnswer
            If it does not serve, or not what scikit-learn says.
        """
        for name in _with_needs(system.server):
            if name not in self._servers:
                self._start_server(name, system)
        with self.awake(system):
            self.warm_up(system, 2 * _WARM_UP_S)
        return self._servers[system.server].ready_s

    @contextmanager
    def awake(self, *systems: System) -> Iterator[None]:
        """Let systems run, and nothing else, as soon as they answer.

        Raises
        ------
        NoAnswer, WrongAnswer
            If one does not, or not what scikit-learn says.
        """
        with ExitStack() as stack:
            for name in dict.fromkeys(name for system in systems for name in _with_needs(system.server)):
                if name not in self._servers:
                    raise NoAnswer(f"{name} does not run")
                stack.enter_context(_resumed(self._servers[name]))
            for system in systems:
                self.settle(system)
            yield

    def settle(self, system: System) -> None:
        """Wait until a system answers and rests, so that nothing that was sent before is still worked on.

        Raises
        ------
        NoAnswer, WrongAnswer
            If it does not, or not what scikit-learn says.
        """
        answers = self._asking(system)
        deadline = time.monotonic() + _WAKE_S
        while not answers():
            if time.monotonic() > deadline:
                raise NoAnswer(f"{system.name} does not answer any more")
            time.sleep(_POLL_S)
        while self._effort(system) > _IDLE and time.monotonic() < deadline:
            pass

    def _effort(self, system: System) -> float:
        """Processor time of a system for a moment, as a share of the time."""
        servers = [self._servers[name] for name in _with_needs(system.server)]
        before = sum(server.processor_s() for server in servers)
        time.sleep(_MOMENT_S)
        return (sum(server.processor_s() for server in servers) - before) / _MOMENT_S

    def warm_up(self, system: System, seconds: float = _WARM_UP_S) -> None:
        """Ask a system that is awake for its answers, several at once.

        Raises
        ------
        NoAnswer, WrongAnswer
            If one does not come, or is not what scikit-learn says.
        """
        self._judge(system).warm_up(self._port(system), self._request(system), seconds)

    def url(self, system: System) -> str:
        """Where a system is asked."""
        return f"http://127.0.0.1:{self._port(system)}{self._request(system).path}"

    def body(self, system: System, candidates: Sequence[Candidate]) -> bytes:
        """A request for some candidates."""
        return encode(self._request(system), candidates)

    def memory_mb(self, system: System) -> float:
        """Resident memory of a system's own server."""
        return self._servers[system.server].memory_mb()

    def _start_server(self, name: str, system: System) -> None:
        self._place.progress(f"starting {name}")
        with ExitStack() as awake:
            for needed in _with_needs(name)[:-1]:
                awake.enter_context(_resumed(self._servers[needed]))
            server = Server(name, KINDS[name].start(self._place))
            self._stack.callback(server.stop)
            server.wait(self._first_answer(name, system))
            server.pause()
        self._servers[name] = server

    def _first_answer(self, server: str, system: System) -> Callable[[], bool]:
        """Whether a server answers that may be there only for another one's sake."""
        if server == "stub":
            # It speaks as the predictors do.
            request = BY_NAME[PREDICTOR].request(self._place.models[FOREST])
            return lambda: self._stub_judge.answers(self._place.port(server), request)
        if server != system.server:
            system = next(one for one in SYSTEMS if one.server == server)
        return self._asking(system)

    def _asking(self, system: System) -> Callable[[], bool]:
        port, request, judge = self._port(system), self._request(system), self._judge(system)
        return lambda: judge.answers(port, request)

    def _port(self, system: System) -> int:
        return self._place.port(system.server)

    def _request(self, system: System) -> Request:
        return system.request(self._place.models[KINDS[system.server].model])

    def _judge(self, system: System) -> Judge:
        return self._stub_judge if system.constant else self._judges[KINDS[system.server].model]


@contextmanager
def _resumed(server: Server) -> Iterator[None]:
    server.resume()
    try:
        yield
    finally:
        server.pause()


def _with_needs(server: str) -> list[str]:
    """A server after all that it needs."""
    return [*(one for needed in KINDS[server].needs for one in _with_needs(needed)), server]
