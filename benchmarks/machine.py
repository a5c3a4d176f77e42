"""Description of the machine and of the package versions that a benchmark ran with."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import psutil

from benchmarks.load import generator

#: Packages whose versions the report shows.
_PACKAGES = (
    "kserve",
    "scikit-learn",
    "numpy",
    "uvicorn",
    "fastapi",
    "flask",
    "gunicorn",
    "litserve",
    "bentoml",
    "ray",
    "onnxruntime",
    "skl2onnx",
    "mlserver",
)
_VERSIONS = """
import json, sys
from importlib import metadata
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def describe(pythons: Iterable[Path]) -> dict[str, str]:
    """Describe the machine, its load before the run, and package versions.

    Parameters
    ----------
    pythons
        Interpreters of the peers' environments; the first that has a package gives its version.
    """
    load = ", ".join(f"{number:.1f}" for number in os.getloadavg())
    described = {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}, {_distribution()}",
        "python": platform.python_version(),
        "load average before": load,
        "load from": generator(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    versions = dict(item for python in reversed([*pythons]) for item in _versions(python).items())
    return described | {name: versions[name] for name in _PACKAGES if name in versions}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform(terse=True)


def _versions(peer: Path) -> dict[str, str]:
    listed = subprocess.run(
        [peer, "-c", _VERSIONS, *_PACKAGES], capture_output=True, text=True, check=True, env={}
    )
    versions: dict[str, str] = json.loads(listed.stdout)
    return versions
