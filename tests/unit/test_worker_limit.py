"""As many workers start as the container has cores and memory for, and the log says so."""

import logging
import os

import pytest

from transformer.server.worker_limit import bounded_workers


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**21}.__getitem__)


def limits(directory, **files):
    for name, content in files.items():
        path = directory / name.replace("__", "/").replace("_max", ".max").replace("_of_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{content}\n")
    return directory


@pytest.mark.parametrize(
    ("files", "wanted", "started"),
    [
        ({}, 8, 8),
        ({}, 32, 8),
        ({"cpu_max": "max 100000", "memory_max": "max"}, 32, 8),
        ({"cpu_max": "400000 100000", "memory_max": 2**30}, 32, 4),
        ({"cpu_max": "400000 100000", "memory_max": 2**30}, 3, 3),
        ({"cpu_max": "150000 100000"}, 32, 2),
        ({"cpu_max": "50000 100000"}, 32, 1),
        ({"memory_max": 512 * 2**20}, 32, 2),
        ({"memory_max": 100 * 2**20}, 32, 1),
        ({"cpu__cpu_of_cfs_quota_us": 200000, "cpu__cpu_of_cfs_period_us": 100000}, 32, 2),
        ({"cpu__cpu_of_cfs_quota_us": -1, "cpu__cpu_of_cfs_period_us": 100000}, 32, 8),
        ({"memory__memory_of_limit_in_bytes": 2**30}, 32, 6),
        ({"memory__memory_of_limit_in_bytes": 2**63 - 4096}, 32, 8),
    ],
)
def test_workers_are_bounded_by_cores_and_memory(files, wanted, started, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert bounded_workers(wanted, limits(tmp_path, **files)) == started
    lines = [record.getMessage() for record in caplog.records]
    if wanted == started:
        assert lines == []
    else:
        (line,) = lines
        assert line.startswith(f"--workers: {wanted} wanted, {started} started: there are ")
        assert "KServe sets --workers to containerConcurrency" in line


def test_one_worker_needs_no_limits(tmp_path, caplog):
    assert bounded_workers(1, limits(tmp_path, memory_max=1)) == 1
    assert not caplog.records
