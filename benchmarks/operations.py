"""Measurements of three costs: monitoring, explanations beside predictions, and a wide vocabulary.

python -m benchmarks.operations monitoring [--rounds 9] [--seconds 5]
python -m benchmarks.operations explanations [--rounds 9] [--seconds 10]
python -m benchmarks.operations wide [--rounds 9] [--seconds 10]

Each measures two systems in turns, and prints each turn and the medians. The machine must do nothing
else, because the differences are small.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import orjson

from benchmarks import wide
from benchmarks.launchers import LAUNCHERS, MLSERVER, OURS_WIDE, SKLEARNSERVER, UNMONITORED, our_name
from benchmarks.load import Load, load
from benchmarks.models import (
    FOREST,
    ORIGINAL_FOREST,
    ServedModel,
    candidates,
    ensure,
    ensure_trained,
    load_served_model,
)
from benchmarks.server_process import ServerProcess
from benchmarks.workspace import Workspace
from training.candidates import Candidate
from training.train import train

_WORK = Path(".run/bench")
#: Loads that monitoring is measured with: clients, and candidates per request.
_LOADS = ((64, 1), (16, 64))
#: Clients that ask for predictions, and for explanations beside them.
_PREDICTING, _EXPLAINING = 16, 2
_WARM_UP_S = 1
#: Candidates of a request with a wide vocabulary.
_WIDE_CANDIDATES = (1, 16)
MONITORED = "front-end"


class _Servers:
    """Servers that are paused unless they are measured, and the requests that they get."""

    def __init__(self, workspace: Workspace, stack: ExitStack, some: Sequence[Candidate]) -> None:
        self._workspace = workspace
        self._stack = stack
        self._some = some

    def start(self, name: str, ready: str) -> ServerProcess:
        """Start a server, and wait until one of its paths answers."""
        self._workspace.progress(f"starting {name}")
        server = ServerProcess(name, LAUNCHERS[name].start(self._workspace))
        self._stack.callback(server.stop)
        server.wait(partial(_is_ready, self.url(name, ready)))
        return server

    @staticmethod
    def turns(running: Mapping[str, ServerProcess], rounds: int) -> Iterator[str]:
        """Yield the name of each server in each round, while the others are paused."""
        for number in range(rounds):
            # Each goes first in half of the rounds.
            for name in sorted(running, reverse=bool(number % 2)):
                for other, server in running.items():
                    (server.resume if other == name else server.pause)()
                yield name

    def url(self, name: str, path: str) -> str:
        return f"http://127.0.0.1:{self._workspace.port(name)}{path}"

    def bodies(self, count: int) -> Path:
        """Return a file of requests with `count` candidates each."""
        file = self._workspace.scratch / f"{count}.bodies"
        if not file.exists():
            parts = [self._some[start : start + count] for start in range(0, len(self._some), count)]
            file.write_bytes(b"\n".join(orjson.dumps({"instances": part}) for part in parts))
        return file


def _is_ready(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as response:  # noqa: S310 (our own server)
            return bool(response.status == 200)
    except (URLError, OSError):
        return False


def measure_monitoring(servers: _Servers, rounds: int, seconds: float) -> None:
    """Compare the transformer with one that counts nothing, in front of the stub predictor."""
    servers.start("stub", "/v2/health/live")
    ready, predict = "/v2/health/ready", "/v1/models/placement:predict"
    running = {name: servers.start(name, ready) for name in (MONITORED, UNMONITORED)}
    for clients, count in _LOADS:
        rates: dict[str, list[float]] = {name: [] for name in running}
        processor_us: dict[str, list[float]] = {name: [] for name in running}
        for name in servers.turns(running, rounds):
            url, bodies = servers.url(name, predict), servers.bodies(count)
            load(url, bodies, clients, _WARM_UP_S)
            before = running[name].processor_s()
            measured = load(url, bodies, clients, seconds)
            used_s = running[name].processor_s() - before
            rates[name].append(measured.per_second)
            processor_us[name].append(1e6 * used_s / measured.requests)
            _say(f"{clients} clients, {count} candidates, {name}: {_figures(measured)}")
        _say(f"{clients} clients, {count} candidates, medians of {rounds} rounds:")
        for what, found in {"requests/s": rates, "processor time (µs) of a request": processor_us}.items():
            on, off = (statistics.median(found[name]) for name in running)
            ratios = [one / other - 1 for one, other in zip(*found.values(), strict=True)]
            _say(
                f"  {what}: {on:.1f} with, {off:.1f} without monitoring; with is "
                f"{statistics.median(ratios):+.1%} (rounds {min(ratios):+.1%} to {max(ratios):+.1%})"
            )


def measure_explanations(servers: _Servers, rounds: int, seconds: float) -> None:
    """Measure predictions of the default service, alone and beside clients that ask for explanations."""
    predictor, ours = f"{MLSERVER}/{FOREST}", our_name(MLSERVER, "v2", FOREST)
    servers.start(predictor, "/v2/health/ready")
    servers.start(ours, "/v2/health/ready")
    predict, explain = (servers.url(ours, f"/v1/models/placement:{verb}") for verb in ("predict", "explain"))
    found: dict[str, list[Load]] = {"alone": [], "beside explanations": []}
    load(predict, servers.bodies(1), _PREDICTING, _WARM_UP_S)
    with ThreadPoolExecutor(1) as beside:
        for number in range(rounds):
            for name in sorted(found, reverse=bool(number % 2)):
                if name == "alone":
                    measured = load(predict, servers.bodies(1), _PREDICTING, seconds)
                else:
                    # The explanations run 2 s longer, to last through the whole measurement.
                    others = beside.submit(load, explain, servers.bodies(1), _EXPLAINING, seconds + 2)
                    measured = load(predict, servers.bodies(1), _PREDICTING, seconds)
                    explained = others.result()
                    _say(f"explanations beside: {_figures(explained)}")
                found[name].append(measured)
                _say(f"predictions {name}: {_figures(measured)}")
    _say(f"medians of {rounds} rounds, {_PREDICTING} clients, {_EXPLAINING} of explanations:")
    for name, loads in found.items():
        rate, p50, p99 = (
            statistics.median(getattr(one, figure) for one in loads)
            for figure in ("per_second", "p50_ms", "p99_ms")
        )
        _say(f"  {name}: {rate:.0f} requests/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms")


def measure_wide(servers: _Servers, rounds: int, seconds: float) -> None:
    """Compare the service with KServe's documented transformer, at 13,000 features and one predictor."""
    predictor = f"{SKLEARNSERVER}/{ORIGINAL_FOREST}"
    servers.start(predictor, "/v1/models/placement")
    running = {name: servers.start(name, "/v1/models/placement") for name in (OURS_WIDE, "documented")}
    for count in _WIDE_CANDIDATES:
        found: dict[str, list[Load]] = {name: [] for name in running}
        for name in servers.turns(running, rounds):
            url, bodies = servers.url(name, "/v1/models/placement:predict"), servers.bodies(count)
            load(url, bodies, _PREDICTING, _WARM_UP_S)
            found[name].append(load(url, bodies, _PREDICTING, seconds))
            _say(f"{count} candidates, {name}: {_figures(found[name][-1])}")
        for name, loads in found.items():
            rate = statistics.median(one.per_second for one in loads)
            memory = running[name].memory_mb()
            _say(f"  {_PREDICTING} clients, {count} candidates, {name}: {rate:.0f}/s, {memory:.0f} MB")


def _figures(one: Load) -> str:
    failed = f", {one.failed} FAILED" if one.failed else ""
    return f"{one.per_second:.0f}/s, p50 {one.p50_ms:.1f} ms, p99 {one.p99_ms:.1f} ms{failed}"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _wide_model() -> ServedModel:
    directory = ensure(_WORK / "models" / "wide" / "v1", _train_wide, _say)
    return load_served_model(directory, _WORK / "pickles" / "wide")


def _train_wide(storage: Path) -> None:
    trips = wide.dataset(500)
    train(trips, storage=storage, name="wide", version="v1", estimator="forest-50", rewrite=False)


MEASUREMENTS = {
    "monitoring": (measure_monitoring, 5.0),
    "explanations": (measure_explanations, 10.0),
    "wide": (measure_wide, 10.0),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.operations", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("what", choices=MEASUREMENTS)
    parser.add_argument("--rounds", type=int, default=9, help="turns with and without (default: 9)")
    parser.add_argument("--seconds", type=float, help="duration of each load (default: 10, monitoring 5)")
    options = parser.parse_args(arguments)
    measure, default_s = MEASUREMENTS[options.what]
    if options.what == "wide":
        models = {ORIGINAL_FOREST: _wide_model()}
        some = wide.dataset(256, seed=1).candidates
    else:
        directory = ensure_trained(FOREST, _WORK / "models", _say)
        models = {FOREST: load_served_model(directory, _WORK / "pickles" / FOREST)}
        some = candidates(1024)
    with (
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch,
        ExitStack() as stack,
    ):
        workspace = Workspace(models, _WORK.resolve(), Path(scratch), _say)
        measure(_Servers(workspace, stack, some), options.rounds, options.seconds or default_s)


if __name__ == "__main__":
    main()
