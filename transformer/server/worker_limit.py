"""Maximum number of worker processes: as many as the container has cores and memory for.

KServe sets ``--workers`` to the InferenceService's ``containerConcurrency``, which is a number of requests.
"""

import logging
import math
import os
from pathlib import Path

logger = logging.getLogger("kserve.transformer")

#: Memory of an idle worker in MiB, and of the first process beside workers: measured as 147 MB.
WORKER_MIB = 140
#: Directory of the container's limits in both versions of cgroups.
CGROUP = Path("/sys/fs/cgroup")

_MIB = 2**20
#: Files with the limit on memory in bytes; version 2 first. Without a limit, the text is no number or huge.
_MEMORY_FILES = ("memory.max", "memory/memory.limit_in_bytes")
_CPU_FILE = "cpu.max"
_OLD_CPU_FILES = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")


def bounded_workers(wanted: int, cgroup: Path = CGROUP) -> int:
    """Return the number of workers to start: `wanted`, or fewer with a line in the log.

    Parameters
    ----------
    cgroup
        Directory of the container's limits.
    """
    if wanted == 1:
        return wanted
    cores, memory = _cores(cgroup), _memory_mib(cgroup)
    # The first process, which serves gRPC beside workers, takes as much as one.
    allowed = max(1, min(math.ceil(cores), int(memory / WORKER_MIB) - 1))
    if wanted <= allowed:
        return wanted
    logger.warning(
        "--workers: %d wanted, %d started: there are %.3g cores and %d MiB of memory, and a worker takes %d "
        "MiB. KServe sets --workers to containerConcurrency unless the transformer's args have it.",
        wanted,
        allowed,
        cores,
        memory,
        WORKER_MIB,
    )
    return allowed


def _cores(cgroup: Path) -> float:
    cores: float = len(os.sched_getaffinity(0))
    quota, _, period = _read(cgroup / _CPU_FILE).partition(" ")
    if not quota:
        quota, period = (_read(cgroup / file) for file in _OLD_CPU_FILES)
    if quota.isdecimal() and period.isdecimal() and int(period):
        cores = min(cores, int(quota) / int(period))
    return cores


def _memory_mib(cgroup: Path) -> float:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [int(text) for file in _MEMORY_FILES if (text := _read(cgroup / file)).isdecimal()]
    return min([total, *limits[:1]]) / _MIB


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
