"""Bulk scoring gives the answers and errors of a running service, bit for bit."""

import httpx
import pytest

from tests.support.placement_command import error_of, run_placement
from tests.support.scored_files import (
    files,
    invalid_rows,
    numbered_candidates,
    spoiled,
    write_candidates,
)
from tests.support.sync_processes import running_transformer


@pytest.fixture(scope="module")
def url(trained_bundle, mlserver, tmp_path_factory):
    """The address of a service with real processes."""
    log = tmp_path_factory.mktemp("transformer") / "log"
    with running_transformer((mlserver.http_port, mlserver.grpc_port), trained_bundle, log) as process:
        yield f"http://127.0.0.1:{process.http_port}"


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_service_and_the_local_engine_write_the_same_files(url, trained_bundle, tmp_path, suffix):
    candidates = spoiled(trained_bundle, numbered_candidates(1500))
    candidates[3]["ssc_p"], candidates[5]["gender"] = float("inf") if suffix == ".parquet" else 1e300, "X"
    inputs = write_candidates(tmp_path / f"in{suffix}", candidates, row_group_size=1500)
    local, service = tmp_path / "local", tmp_path / "service"
    for output, arguments in (
        (local, ("--model", trained_bundle)),
        (service, ("--engine", "service", "--url", url)),
    ):
        done = run_placement("score", inputs, output, *arguments, "--workers", 1)
        assert done.returncode == 0, done.stderr
    ours, theirs = files(local), files(service)
    assert ours.keys() == theirs.keys()
    different = {name for name in ours if ours[name] != theirs[name]}
    assert different == {"_job.json"}


def test_an_error_is_the_services_for_a_request_with_that_candidate(url, trained_bundle, tmp_path):
    candidates = spoiled(trained_bundle, numbered_candidates(20))
    inputs = write_candidates(tmp_path / "in.jsonl", candidates)
    done = run_placement("score", inputs, tmp_path / "out", "--model", trained_bundle, "--workers", 1)
    assert done.returncode == 0, done.stderr
    for row in invalid_rows(tmp_path / "out"):
        error = row.pop("error")
        answer = httpx.post(f"{url}/v1/models/placement:predict", json={"instances": [row]})
        assert (answer.status_code, answer.json()["error"]) == (400, error)


def test_a_service_without_the_model_stops_the_job_and_marks_no_row_as_invalid(url, trained_bundle, tmp_path):
    inputs = write_candidates(tmp_path / "in.jsonl", numbered_candidates(3))
    arguments = ("--engine", "service", "--url", url, "--model", "other")
    error = error_of(run_placement("score", inputs, tmp_path / "out", *arguments), "score")
    assert error.startswith("Model with name other does not exist")
    assert not (tmp_path / "out").exists()
