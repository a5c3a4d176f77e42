"""Run a load generator in a separate process: wrk if it is installed and fast enough, else `load_client`."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_SCRIPT = Path(__file__).with_name("wrk.lua")
#: Time-out of a request in wrk, long enough for a system that answers 256 clients one by one.
_TIMEOUT_S = 60

NO_WRK = (
    "wrk is not installed (Debian: apt-get install wrk); benchmarks.load_client makes the load instead, and "
    "takes more processor time from the system that it measures"
)


class LoadError(Exception):
    """The load generator failed."""


@dataclass(frozen=True)
class Load:
    """Figures of one load.

    Attributes
    ----------
    requests
        Number of answers with status 200.
    failed
        Number of requests with another status or without an answer.
    """

    requests: int
    seconds: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    failed: int

    @property
    def per_second(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


def has_wrk() -> bool:
    """Return True if wrk is installed."""
    return shutil.which("wrk") is not None


def generator() -> str:
    """Name of the load generator, for the report."""
    return "wrk" if has_wrk() else "benchmarks.load_client"


def load(url: str, bodies: Path, clients: int, seconds: float, *, steady: bool = False) -> Load:
    """Let clients send requests; each sends its next request when it has the answer to the last one.

    Parameters
    ----------
    bodies
        File with one JSON body per line; they are sent in turn.
    steady
        True to begin the measurement when each client has got one answer, which wrk cannot do.

    Raises
    ------
    LoadError
        If the load generator fails.
    """
    if has_wrk() and not steady:
        # wrk takes whole seconds only.
        command = ["wrk", "-t1", f"-c{clients}", f"-d{max(round(seconds), 1)}s", f"--timeout={_TIMEOUT_S}s"]
        command += ["--latency", "-s", str(_SCRIPT), url, "--", str(bodies)]
    else:
        command = [
            sys.executable,
            "-m",
            "benchmarks.load_client",
            f"--clients={clients}",
            f"--seconds={seconds:g}",
        ]
        command += [url, str(bodies)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        return Load(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError) as error:
        raise LoadError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-300:]}") from error
