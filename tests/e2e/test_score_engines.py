"""Ray, Spark and Dask give the output of the local engine byte for byte, also if a worker is killed."""

import os
import shutil
import subprocess

import pytest

from scoring.engines import ENGINES
from scoring.job import finish
from scoring.part import score_part
from tests.support.paths import ENGINES_PYTHON, ROOT
from tests.support.scored_files import files, numbered_candidates, plan_job, spoiled, write_candidates

SCRIPT = ROOT / "tests" / "support" / "dying_worker.py"
TIMEOUT_S = 400

pytestmark = pytest.mark.skipif(not ENGINES_PYTHON.exists(), reason="Ray, Spark and Dask: run `make engines`")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, trained_bundle):
    candidates = spoiled(trained_bundle, numbered_candidates(600))
    return write_candidates(tmp_path_factory.mktemp("in") / "in.parquet", candidates)


@pytest.fixture(scope="module")
def expected(inputs, trained_bundle, tmp_path_factory):
    """The output of the pure function in this process."""
    output = tmp_path_factory.mktemp("expected") / "out"
    job, parts = plan_job(inputs, output, trained_bundle)
    for part in parts:
        score_part(job, part)
    finish(output)
    return files(output)


def skip_without_java(engine):
    if engine == "spark" and shutil.which("java") is None:
        pytest.skip("Spark: needs Java (Debian: default-jre-headless)")


def run(*arguments):
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYSPARK_PYTHON": str(ENGINES_PYTHON)}
    command = [str(ENGINES_PYTHON), *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "local"])
def test_a_killed_worker_of_an_engine_changes_nothing(engine, inputs, expected, trained_bundle, tmp_path):
    skip_without_java(engine)
    output, marker = tmp_path / "out", tmp_path / "killed"
    done = run(SCRIPT, engine, inputs, output, trained_bundle, marker)
    assert done.returncode == 0, done.stderr
    assert marker.exists(), "a worker was killed"
    assert files(output) == expected


@pytest.mark.parametrize("engine", ["ray", "dask"])
def test_a_part_whose_workers_always_die_ends_the_job(engine, trained_bundle, tmp_path):
    inputs = write_candidates(tmp_path / "in.parquet", numbered_candidates(60))
    done = run(SCRIPT, engine, inputs, tmp_path / "out", trained_bundle)
    assert done.returncode == 1
    *_, last = done.stderr.strip().splitlines()
    assert f"ScoringError: --engine {engine}: the cluster gave up a part: " in last
    assert last.endswith("run the same command again to score what is left")


def test_the_command_scores_with_ray(inputs, expected, trained_bundle, tmp_path):
    arguments = ("--model", trained_bundle, "--engine", "ray", "--workers", 2, "--json")
    done = run("-m", "placement.cli", "score", inputs, tmp_path / "out", *arguments)
    assert done.returncode == 0, done.stderr
    assert '"parts": 6, "found": 0, "scored": 514, "invalid": 86' in done.stdout
    assert files(tmp_path / "out") == expected


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "local"])
def test_a_part_that_cannot_be_scored_is_one_line_in_each_engine(engine, trained_bundle, tmp_path):
    skip_without_java(engine)
    inputs = write_candidates(tmp_path / "in.csv", numbered_candidates(3))
    inputs.write_bytes(inputs.read_bytes() + b"1,caf\xe9\n")
    arguments = ("--model", trained_bundle, "--engine", engine, "--workers", 1)
    done = run("-m", "placement.cli", "score", inputs, tmp_path / "out", *arguments)
    assert done.returncode == 1
    problem = "line 5: must be UTF-8, got the byte 0xe9"
    assert done.stderr.endswith(f"placement score: {inputs} (part-000000): {problem}\n")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("engine", "cluster"),
    [("ray", "127.0.0.1:1"), ("dask", "foo"), ("spark", "foo")],
)
def test_a_cluster_that_does_not_answer_is_one_line(engine, cluster, inputs, trained_bundle, tmp_path):
    skip_without_java(engine)
    arguments = ("--model", trained_bundle, "--engine", engine, "--cluster", cluster)
    done = run("-m", "placement.cli", "score", inputs, tmp_path / "out", *arguments)
    assert done.returncode == 1
    assert f"placement score: --engine {engine}: no cluster answers at {cluster}: " in done.stderr
    assert "Traceback" not in done.stderr


PIPELINES = """
import sys
import pyarrow as pa, pyarrow.parquet as pq
from scoring.batch import BatchScorer
inputs, uri = sys.argv[1:]
expected = BatchScorer(uri)(pq.read_table(inputs)).sort_by("id")

import ray
# An actor holds one core, and reading needs another.
ray.init(num_cpus=2, include_dashboard=False)
data = ray.data.read_parquet(inputs).map_batches(
    BatchScorer, fn_constructor_args=[uri], batch_format="pyarrow", concurrency=1
)
found = pa.concat_tables(list(data.iter_batches(batch_size=None, batch_format="pyarrow")))
assert found.select(expected.column_names).sort_by("id").equals(expected)
ray.shutdown()

from pyspark.sql import SparkSession
spark = SparkSession.builder.master("local[1]").getOrCreate()
frame = spark.read.parquet(inputs)

def score(batches):
    yield from map(BatchScorer(uri), batches)

added = "prediction boolean, probability double, version string, error string"
schema = f"{', '.join(' '.join(one) for one in frame.dtypes)}, {added}"
rows = sorted((tuple(row) for row in frame.mapInArrow(score, schema).collect()))
assert rows == [tuple(row.values()) for row in expected.to_pylist()]
print("equal")
"""


def test_the_pure_function_runs_in_pipelines_of_ray_data_and_spark(inputs, trained_bundle, tmp_path):
    skip_without_java("spark")
    (tmp_path / "pipelines.py").write_text(PIPELINES)
    done = run(tmp_path / "pipelines.py", inputs, trained_bundle)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("equal\n")
