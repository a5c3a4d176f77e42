"""Start the servers of all systems once, and let only the system under test run."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Self

from benchmarks.answer_check import AnswerChecker, NoAnswer, Request, encode
from benchmarks.launchers import LAUNCHERS
from benchmarks.models import FOREST
from benchmarks.server_process import ServerProcess
from benchmarks.stub_predictor import PROBABILITY
from benchmarks.systems import BY_NAME, PREDICTOR, SYSTEMS, System
from benchmarks.workspace import Workspace
from training.candidates import Candidate

#: Duration of the warm-up after a pause.
_WARM_UP_S = 0.3
#: Time-out for the first answer after a pause.
_RESUME_TIMEOUT_S = 30
_POLL_S = 0.02
#: A system is idle if it uses less than this share of one processor, measured over `_IDLE_SAMPLE_S`.
_IDLE_LOAD = 0.11
_IDLE_SAMPLE_S = 0.2


class SystemRunner:
    """Runs the systems' servers until the end of the ``with`` block, paused except while they are measured.

    Parameters
    ----------
    candidates
        Candidates whose answers are checked.
    """

    def __init__(self, workspace: Workspace, candidates: Sequence[Candidate]) -> None:
        self._workspace = workspace
        self._servers: dict[str, ServerProcess] = {}
        self._checkers = {
            name: AnswerChecker.for_model(model, candidates) for name, model in workspace.models.items()
        }
        self._stub_checker = AnswerChecker(candidates, [PROBABILITY] * len(candidates))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for server in reversed(self._servers.values()):
            server.stop()

    def start(self, system: System) -> float:
        """Start the servers that a system needs and that do not run yet, then warm it up.

        Returns
        -------
        float
            Seconds from the start of the system's own server to its first correct answer.

        Raises
        ------
        ServerError, NoAnswer, WrongAnswer
            If a server does not start or does not answer, or if an answer differs from scikit-learn's.
        """
        for name in _with_needs(system.server):
            if name not in self._servers:
                self._start_server(name, system)
        with self.running(system):
            self.warm_up(system, 2 * _WARM_UP_S)
        return self._servers[system.server].ready_s

    def restart(self, system: System) -> float:
        """Stop a system's own server and start it again, with its predictor running.

        Returns
        -------
        float
            Seconds from the start to the first correct answer.

        Raises
        ------
        ServerError, WrongAnswer
            If the server does not start, or if an answer differs from scikit-learn's.
        """
        if system.server in self._servers:
            self._servers.pop(system.server).stop()
        self._start_server(system.server, system)
        return self._servers[system.server].ready_s

    @contextmanager
    def running(self, *systems: System) -> Iterator[None]:
        """Resume these systems only, wait until they answer, and pause them at the end of the block.

        Raises
        ------
        NoAnswer, WrongAnswer
            If a system does not answer, or if an answer differs from scikit-learn's.
        """
        with ExitStack() as stack:
            for name in dict.fromkeys(name for system in systems for name in _with_needs(system.server)):
                if name not in self._servers:
                    raise NoAnswer(f"{name} is not running")
                stack.enter_context(_resumed(self._servers[name]))
            for system in systems:
                self.wait_until_idle(system)
            yield

    def wait_until_idle(self, system: System) -> None:
        """Wait until a system answers and has finished the work of earlier requests.

        Raises
        ------
        NoAnswer, WrongAnswer
            If the system does not answer, or if an answer differs from scikit-learn's.
        """
        is_answering = self._answer_check(system)
        deadline = time.monotonic() + _RESUME_TIMEOUT_S
        while not is_answering():
            if time.monotonic() > deadline:
                raise NoAnswer(f"{system.name} no longer answers")
            time.sleep(_POLL_S)
        while self._processor_load(system) > _IDLE_LOAD and time.monotonic() < deadline:
            pass

    def _processor_load(self, system: System) -> float:
        """Measure for `_IDLE_SAMPLE_S` how much of one processor a system uses."""
        servers = [self._servers[name] for name in _with_needs(system.server)]
        before = sum(server.processor_s() for server in servers)
        time.sleep(_IDLE_SAMPLE_S)
        return (sum(server.processor_s() for server in servers) - before) / _IDLE_SAMPLE_S

    def warm_up(self, system: System, seconds: float = _WARM_UP_S) -> None:
        """Send concurrent requests to a running system and check the answers.

        Raises
        ------
        NoAnswer, WrongAnswer
            If an answer is missing or differs from scikit-learn's.
        """
        self._checker(system).warm_up(self._port(system), self._request(system), seconds)

    def url(self, system: System) -> str:
        """URL that a system's requests go to."""
        return f"http://127.0.0.1:{self._port(system)}{self._request(system).path}"

    def body(self, system: System, candidates: Sequence[Candidate]) -> bytes:
        """Body of a request for these candidates."""
        return encode(self._request(system), candidates)

    def memory_mb(self, system: System) -> float:
        """Resident memory of a system's own server."""
        return self._servers[system.server].memory_mb()

    def _start_server(self, name: str, system: System) -> None:
        self._workspace.progress(f"starting {name}")
        with ExitStack() as running:
            for needed in _with_needs(name)[:-1]:
                running.enter_context(_resumed(self._servers[needed]))
            server = ServerProcess(name, LAUNCHERS[name].start(self._workspace))
            try:
                server.wait(self._start_check(name, system))
            except BaseException:
                server.stop()
                raise
            server.pause()
        self._servers[name] = server

    def _start_check(self, server: str, system: System) -> Callable[[], bool]:
        """Make the check that a server has started; `system` is the one that needs the server."""
        if server == "stub":
            # The stub speaks the predictors' protocol.
            request = BY_NAME[PREDICTOR].request(self._workspace.models[FOREST])
            return lambda: self._stub_checker.is_answering(self._workspace.port(server), request)
        if server != system.server:
            system = next(one for one in SYSTEMS if one.server == server)
        return self._answer_check(system)

    def _answer_check(self, system: System) -> Callable[[], bool]:
        port, request, checker = self._port(system), self._request(system), self._checker(system)
        return lambda: checker.is_answering(port, request)

    def _port(self, system: System) -> int:
        return self._workspace.port(system.server)

    def _request(self, system: System) -> Request:
        return system.request(self._workspace.models[LAUNCHERS[system.server].model])

    def _checker(self, system: System) -> AnswerChecker:
        return self._stub_checker if system.constant else self._checkers[LAUNCHERS[system.server].model]


@contextmanager
def _resumed(server: ServerProcess) -> Iterator[None]:
    server.resume()
    try:
        yield
    finally:
        server.pause()


def _with_needs(server: str) -> list[str]:
    """Names of the servers that a server needs, in starting order, with its own name last."""
    return [*(one for needed in LAUNCHERS[server].needs for one in _with_needs(needed)), server]
