"""Load from a process of its own: wrk where it is installed and answers come fast, else our own client."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
_SCRIPT: Final = Path(__file__).with_name("wrk.lua")
#: Seconds after which wrk takes a request for lost; the slowest answers 256 clients one by one.
_TIMEOUT_S: Final = 60

NO_WRK: Final = (
    "wrk is not installed (Debian: apt-get install wrk): a client of our own makes the load, which takes "
    "more of the processor from what it measures"
)


class LoadError(Exception):
    """The load could not be made."""


@dataclass(frozen=True)
class Load:
    """What came of some seconds of load.

    Attributes
    ----------
    requests
        Answered with status 200.
    failed
        Answered with another status, or not at all.
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
    """Whether wrk makes the load."""
    return shutil.which("wrk") is not None


def generator() -> str:
    """What makes the load, for people."""
    return "wrk" if has_wrk() else "benchmarks.client"


def load(url: str, bodies: Path, clients: int, seconds: float, *, steady: bool = False) -> Load:
    """Have clients send requests, each the next one when the last one is answered.

    Parameters
    ----------
    bodies
        File of JSON bodies, one a line, sent in turn.
    steady
        Whether to wait with the measurement until each client has been answered once, which wrk cannot.

    Raises
    ------
    LoadError
        If the generator itself fails.
    """
    if has_wrk() and not steady:
        # It takes whole seconds only.
        command = ["wrk", "-t1", f"-c{clients}", f"-d{max(round(seconds), 1)}s", f"--timeout={_TIMEOUT_S}s"]
        command += ["--latency", "-s", str(_SCRIPT), url, "--", str(bodies)]
    else:
        command = [
            sys.executable,
            "-m",
            "benchmarks.client",
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
