"""`placement score` loses and doubles nothing, also if it is repeated or a worker is killed."""

import json
import os
import shutil
import signal
import subprocess

import psutil
import pytest

from scoring import engines
from scoring.engines import run_local
from scoring.errors import ScoringError
from scoring.job import finish
from scoring.part import score_part
from scoring.predictor import BundlePredictor
from tests.support.dying_worker import DyingSource
from tests.support.paths import PLACEMENT, ROOT
from tests.support.placement_command import error_of, run_placement
from tests.support.scored_files import (
    files,
    invalid_rows,
    numbered_candidates,
    plan_job,
    read_rows,
    source_of,
    spoiled,
    write_candidates,
)
from tests.support.waiting import wait_until_sync
from transformer.bundle.format import load_bundle


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, trained_bundle):
    """A directory of two files, with invalid candidates."""
    directory = tmp_path_factory.mktemp("in")
    candidates = spoiled(trained_bundle, numbered_candidates(500))
    write_candidates(directory / "a.parquet", candidates[:300])
    (directory / "day=2").mkdir()
    write_candidates(directory / "day=2" / "b.parquet", candidates[300:])
    (directory / "_SUCCESS").touch()
    return directory


def score(inputs, output, bundle, *arguments):
    return run_placement("score", inputs, output, "--model", bundle, "--workers", 2, *arguments)


@pytest.fixture(scope="module")
def scored(inputs, trained_bundle, tmp_path_factory):
    """The output of an undisturbed job."""
    output = tmp_path_factory.mktemp("scored") / "out"
    done = score(inputs, output, trained_bundle, "--json")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["parts"], counts["scored"], counts["invalid"]) == (5, 428, 72)
    return output


def test_each_row_is_scored_or_refused_once(scored):
    valid, invalid = read_rows(scored), invalid_rows(scored)
    assert sorted(row["id"] for row in [*valid, *invalid]) == list(range(500))
    assert [row["id"] for row in invalid] == list(range(0, 500, 7))


def test_a_repeated_run_scores_only_what_is_missing(inputs, scored, trained_bundle, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(scored, output)
    (output / "part-000002.parquet").unlink()
    (output / "_SUCCESS").unlink()
    kept = (output / "part-000001.parquet").stat().st_mtime_ns
    done = score(inputs, output, trained_bundle, "--json")
    assert json.loads(done.stdout) == {
        "output": str(output),
        "parts": 5,
        "found": 4,
        "scored": 428,
        "invalid": 72,
    }
    assert files(output) == files(scored)
    assert (output / "part-000001.parquet").stat().st_mtime_ns == kept


def test_a_killed_worker_changes_nothing(inputs, scored, trained_bundle, tmp_path):
    output, marker = tmp_path / "out", tmp_path / "killed"
    source = DyingSource(source_of(trained_bundle), str(marker))
    job, parts = plan_job(inputs, output, trained_bundle, source)
    results = list(run_local(job, parts, 2))
    finish(output)
    assert marker.exists(), "a worker was killed"
    assert sum(result.valid for result in results) == 428
    assert files(output) == files(scored)


def test_two_runs_of_a_job_at_the_same_time_give_its_output(
    inputs, scored, trained_bundle, tmp_path, monkeypatch
):
    output = tmp_path / "out"
    runs: list[subprocess.CompletedProcess[str]] = []

    class SlowPredictor(BundlePredictor):
        def predict(self, candidates):
            if not runs:
                runs.append(score(inputs, output, trained_bundle))
            return super().predict(candidates)

    job, parts = plan_job(inputs, output, trained_bundle)
    slow = SlowPredictor(str(trained_bundle))
    monkeypatch.setattr("scoring.part.opened", lambda _: slow)
    score_part(job, parts[0])
    assert runs[0].returncode == 0, runs[0].stderr
    assert files(output) == files(scored)


def test_workers_that_die_again_and_again_end_the_job(inputs, trained_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "MAX_DEATHS", 1)
    source = DyingSource(source_of(trained_bundle), str(tmp_path / "killed"))
    job, parts = plan_job(inputs, tmp_path / "out", trained_bundle, source)
    with pytest.raises(ScoringError, match="workers died 1 times without finishing a part"):
        list(run_local(job, parts[:1], 1))


def test_workers_end_with_a_killed_command(trained_bundle, tmp_path):
    write_candidates(tmp_path / "in.parquet", numbered_candidates(4000), row_group_size=10)
    command = [PLACEMENT, "score", tmp_path / "in.parquet", tmp_path / "out", "--model", trained_bundle]
    with subprocess.Popen([*command, "--workers", "2"], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        wait_until_sync(lambda: any((tmp_path / "out").glob("part-*")), timeout_s=120)
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
        os.kill(process.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


def test_an_output_takes_no_parts_of_another_job(inputs, scored, trained_bundle, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(scored, output)
    other = write_candidates(tmp_path / "other.parquet", numbered_candidates(10))
    refused = f"{output}: holds the parts of another job (_job.json: another model or input); "
    assert error_of(score(other, output, trained_bundle), "score").startswith(refused)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").touch()
    message = f"{tmp_path / 'used'}: must be an empty directory, found notes.txt"
    assert error_of(score(inputs, tmp_path / "used", trained_bundle), "score") == message
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["notes.txt"]


def test_an_input_that_cannot_be_scored_is_refused_before_the_first_part(trained_bundle, tmp_path):
    def error(inputs):
        message = error_of(score(inputs, tmp_path / "out", trained_bundle), "score")
        assert not (tmp_path / "out").exists()
        return message

    rows = numbered_candidates(3)
    missing = write_candidates(tmp_path / "missing.parquet", [{"ssc_p": 1.0, "id": 1}])
    assert "missing.parquet: the columns 'gender', " in error(missing)
    misspelled = write_candidates(tmp_path / "misspelled.csv", [{**one, "SSC P": 1} for one in rows])
    misspelled.write_text(misspelled.read_text().replace("ssc_p,", "old,", 1))
    assert error(misspelled) == f"{misspelled}: column 'SSC P' must be spelled 'ssc_p'"
    taken = write_candidates(tmp_path / "taken.csv", [{**one, "error": 1} for one in rows])
    assert error(taken) == f"{taken}: has the column 'error' already; rename it or leave it out"
    (tmp_path / "in.xlsx").touch()
    assert "must be files of one format (.parquet, .csv, .jsonl, .ndjson), got .xlsx" in error(
        tmp_path / "in.xlsx"
    )
    assert error(tmp_path / "none") == f"{tmp_path / 'none'}: no such file or directory"
    foreign = write_candidates(tmp_path / "foreign.csv", [{"id": 1, "age": 30}])
    names = ", ".join(load_bundle(trained_bundle).signature.datatypes)
    assert names.startswith("gender, ssc_p, ")
    assert error(foreign) == f"{foreign}: has none of the fields {names}; found: id, age"
    empty = tmp_path / "empty.csv"
    for content in ("", ",".join(rows[0]) + "\n"):
        empty.write_text(content)
        assert error(empty) == f"{empty}: has no candidates"


def test_an_output_must_be_a_directory_outside_the_input(inputs, trained_bundle, tmp_path):
    inside = inputs / "scored"
    message = f"{inside}: must be outside the input {inputs}, which another run would read"
    assert error_of(score(inputs, inside, trained_bundle), "score") == message
    assert not inside.exists()
    (tmp_path / "out").write_text("a file")
    message = error_of(score(inputs, tmp_path / "out", trained_bundle), "score")
    assert message.startswith(f"{tmp_path / 'out'}: must be a directory that can be written: [Errno 20] ")


def test_parts_without_counts_are_scored_again(inputs, scored, trained_bundle, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(scored, output)
    shutil.rmtree(output / "_counts")
    done = score(inputs, output, trained_bundle, "--json")
    assert '"parts": 5, "found": 0, "scored": 428, "invalid": 72' in done.stdout
    assert files(output) == files(scored)


def test_a_file_that_is_no_parquet_is_an_error_in_one_line(trained_bundle, tmp_path):
    (tmp_path / "in.parquet").write_text("no parquet")
    assert f"{tmp_path / 'in.parquet'}: " in error_of(
        score(tmp_path / "in.parquet", tmp_path / "out", trained_bundle), "score"
    )


def test_no_part_is_begun_after_one_that_cannot_be_scored(trained_bundle, tmp_path):
    rows = [{"candidates": json.dumps(one)} for one in numbered_candidates(2000)]
    rows[0]["candidates"] = '{"error": 1}'
    inputs = write_candidates(tmp_path / "in.parquet", rows, row_group_size=2)
    message = f"{inputs} (part-000000): a candidate has the key 'error' already; rename it or leave it out"
    assert error_of(score(inputs, tmp_path / "out", trained_bundle), "score") == message
    assert len([*(tmp_path / "out").glob("part-*")]) < 900


def test_an_engine_that_is_not_installed_is_an_error_that_says_how(inputs, trained_bundle, tmp_path):
    done = run_placement("score", inputs, tmp_path / "out", "--model", trained_bundle, "--engine", "ray")
    assert "--engine ray needs the package ray: in a checkout run `make engines`" in error_of(done, "score")


def test_the_model_is_required(inputs, tmp_path):
    done = run_placement("score", inputs, tmp_path / "out")
    assert error_of(done, "score").startswith("--model: is required, expected the URI of a version")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cluster", "spark://a:7077"), "--cluster needs --engine ray, spark or dask, got --engine local"),
        (
            ("--cluster", "a:6379", "--engine", "service"),
            "--cluster needs --engine ray, spark or dask, got --engine service",
        ),
        (("--url", "http://a:8080"), "--url needs --engine service, got --engine local"),
        (("--workers", 0), "--workers: must be at least 1, got 0"),
        (
            ("--workers", 2, "--engine", "dask", "--cluster", "tcp://a:8786"),
            "--workers: the cluster at tcp://a:8786 has its own number; leave the option out",
        ),
    ],
)
def test_an_option_that_the_engine_would_ignore_is_refused(arguments, message, inputs, tmp_path):
    assert error_of(run_placement("score", inputs, tmp_path / "out", *arguments), "score") == message


def test_workers_of_an_existing_ray_cluster_are_its_own(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "a:6379")
    done = run_placement("score", inputs, tmp_path / "out", "--engine", "ray", "--workers", 2)
    assert error_of(done, "score").startswith("--workers: the cluster at a:6379 has its own number")


def test_a_part_that_cannot_be_scored_is_an_error_with_its_name(trained_bundle, tmp_path):
    inputs = write_candidates(tmp_path / "in.csv", numbered_candidates(3))
    inputs.write_bytes(inputs.read_bytes() + b"1,caf\xe9\n")
    message = f"{inputs} (part-000000): line 5: must be UTF-8, got the byte 0xe9"
    assert error_of(score(inputs, tmp_path / "out", trained_bundle), "score") == message
