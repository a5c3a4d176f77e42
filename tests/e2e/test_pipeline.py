"""The pipeline runs, a process for each step, and ends in a version that the local service serves."""

import json
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml

from pipelines.__main__ import ENVIRONMENT, HERE, VARIABLES
from pipelines.data import SEED
from placement.cli import main
from predictor.environment import installed
from tests.support.paths import ROOT
from tests.support.placement_command import PlacementUp
from training.candidates import PLACEMENT, SAMPLE
from training.generator import generate

PYTHON = installed(ENVIRONMENT)
TIMEOUT_S = 300
STEPS = 9

pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="Kubeflow Pipelines: run `make pipeline ARGS=--install`"
)


def run(*arguments, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [str(PYTHON), "-m", "pipelines.run", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | VARIABLES, capture_output=True, text=True, timeout=TIMEOUT_S
    )


def test_the_compiled_pipeline_is_current(tmp_path):
    done = run("--compile", tmp_path / "compiled.yaml")
    assert done.returncode == 0, done.stderr
    compiled, checked_in = (
        list(yaml.safe_load_all(path.read_text()))
        for path in (tmp_path / "compiled.yaml", HERE / "placement.yaml")
    )
    assert checked_in == compiled, "run `make pipeline ARGS=--compile`"


def containers(path: Path) -> tuple[set[str], list[dict]]:
    """Return the images of a compiled pipeline, and what Kubernetes gives each step."""
    spec, platform = yaml.safe_load_all(path.read_text())
    executors = spec["deploymentSpec"]["executors"]
    steps = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert steps.keys() == executors.keys()
    assert len(steps) == STEPS
    return {one["container"]["image"] for one in executors.values()}, list(steps.values())


def test_each_step_mounts_the_claim_where_its_uri_is_found():
    images, steps = containers(HERE / "placement.yaml")
    assert images == {"placement-training:0.1.0"}
    mounts = [(mount["constant"], mount["mountPath"]) for step in steps for mount in step["pvcMount"]]
    assert mounts == [("models", "/work/models")] * STEPS
    assert "\nWORKDIR /work\n" in (ROOT / "Dockerfile.training").read_text()


def test_a_pipeline_for_s3_has_the_keys_and_no_claim(tmp_path):
    file = tmp_path / "pipeline.yaml"
    done = run("--compile", file, "--s3", "--image", "registry.example/training:7")
    assert done.returncode == 0, done.stderr
    images, steps = containers(file)
    assert images == {"registry.example/training:7"}
    for step in steps:
        assert [secret["secretName"] for secret in step["secretAsEnv"]] == ["placement-s3"]
        assert "pvcMount" not in step


def write_csv(path: Path, rows: int, seed: int, more: float = 0.0) -> None:
    """Write labelled candidates, with more per cent in the secondary school."""
    dataset = generate(rows, seed)
    header = [*PLACEMENT.signature.names, PLACEMENT.label]
    lines = [
        ",".join(map(str, [*{**one, "ssc_p": min(float(str(one["ssc_p"])) + more, 100.0)}.values(), label]))
        for one, label in zip(dataset.candidates, dataset.labels, strict=True)
    ]
    path.write_text("\n".join([",".join(header), *lines]))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A directory with a first version."""
    directory = tmp_path_factory.mktemp("checkout")
    # As `make run` does, but with a fast estimator.
    options = ["--estimator", "logistic-regression"]
    assert main(["train", "--storage", str(directory / "models"), *options]) == 0
    return directory


@pytest.fixture(scope="module")
def up(checkout):
    with PlacementUp(Path("models/placement/v1"), checkout / ".run", cwd=checkout) as running:
        running.wait_for("ready")
        yield running


def serving(up: PlacementUp) -> str:
    url = f"http://127.0.0.1:{up.port}/v1/models/placement:predict"
    return httpx.post(url, json={"instances": [SAMPLE]}, timeout=60).headers["x-model-version"]


def documented(number: int) -> list[str]:
    """Return the arguments of a command in docs/pipelines.md, with a fast estimator."""
    page = (ROOT / "docs/pipelines.md").read_text()
    commands = re.findall(r"<!-- runs -->\n```bash\nmake pipeline ARGS='(.*)'\n```", page)
    assert len(commands) == 2
    return [*shlex.split(commands[number]), "--estimator", "logistic-regression", "--tune", "1"]


def test_a_version_that_breaks_a_bound_is_neither_published_nor_rolled_out(checkout, up):
    write_csv(checkout / "candidates.csv", 600, 5, more=12.0)
    done = run(*documented(0), cwd=checkout)
    assert done.returncode == 1
    drift = "check-gate: v2 must not serve: ssc_p has drifted from the data of v1: its stability index is "
    *errors, where = done.stderr.splitlines()
    assert any(one.startswith(drift) and one.endswith(", max_psi 0.25") for one in errors), done.stderr
    assert all(one.startswith("check-gate: v2 must not serve: ") for one in errors), done.stderr
    name, _, _, verdict = done.stdout.splitlines()[-1].split()
    assert (name, verdict) == ("check-gate", "failed")
    log = (checkout / where.removeprefix("The full log is ")).read_text()
    assert "Task 'check-gate' finished with status FAILURE" in log
    logged = [line.strip() for line in log.splitlines() if "must not serve" in line]
    assert errors == [line.replace("ERROR: ", "") for line in logged]
    assert serving(up) == "v1"
    assert {path.name for path in (checkout / "models/placement").iterdir()} == {"v1", "v1.html"}


def test_a_version_that_passes_the_gate_serves_in_the_end(checkout, up):
    assert serving(up) == "v1"
    done = run(*documented(1), cwd=checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert serving(up) == "v2"
    lines = [line.split(maxsplit=3) for line in done.stdout.splitlines() if not line.startswith(" ")]
    *steps, version, report, artifacts, log = lines
    assert [name for name, *_ in steps] == [
        "check-bounds", "find-serving", "validate-data", "train-model", "evaluate-model", "check-gate",
        "publish-model", "roll-out", "check-predictions",
    ]  # fmt: skip
    said = {name: text[0] if text else "" for name, _, _, *text in steps}
    assert said["find-serving"] == "models/placement/v1 serves"
    assert said["train-model"].startswith("v2: logistic-regression")
    assert said["check-gate"] == "v2 may serve"
    assert said["publish-model"] == "published pvc://models/placement/v2"
    assert said["roll-out"] == "v2 serves"
    assert said["check-predictions"] == (
        "100 predictions for held-out candidates are those of the evaluation"
    )
    assert version == ["version", "pvc://models/placement/v2"]
    assert report == ["report", "models/placement/v2.html"]
    assert "What changes against v1?" in (checkout / report[1]).read_text()
    assert "Task 'check-predictions' finished with status SUCCESS" in (checkout / log[1]).read_text()
    (evaluated,) = (checkout / artifacts[1]).glob("*/evaluate-model/executor_output.json")
    logged = json.loads(evaluated.read_text())["artifacts"]["classification"]["artifacts"][0]["metadata"]
    assert logged.keys() == {"confusionMatrix", "confidenceMetrics"}


def test_generated_candidates_are_not_those_that_the_first_version_was_fitted_on():
    first = set(map(str, generate(2000, 0).candidates))
    assert not first & set(map(str, generate(2000, SEED).candidates))


def test_own_data_stop_beside_another_model_and_else_become_a_first_version(checkout, up, monkeypatch):
    """The commands of docs/pipelines.md, first while placement serves and then where no service runs."""
    page = (ROOT / "docs/pipelines.md").read_text()
    (block,) = re.findall(r"<!-- own data -->\n```bash\n(.*?)```", page, re.DOTALL)
    *init, pipeline, serve = block.splitlines()
    monkeypatch.chdir(checkout)
    for command in init:
        assert main(shlex.split(command.removeprefix(".venv/bin/placement "))) == 0
    (arguments,) = re.findall(r"make pipeline ARGS='(.*)'", pipeline)
    own = [*shlex.split(arguments), "--estimator", "logistic-regression"]
    beside = run(*own, cwd=checkout)
    assert beside.returncode == 1
    assert beside.stderr.startswith("find-serving: name: 'placement' serves in .run")
    assert "train-model" not in beside.stdout
    alone = run(*own, "--run", "elsewhere", cwd=checkout)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert (checkout / serve.split("--model ")[1] / "bundle.json").is_file()


def test_errors_name_the_step_and_the_value(checkout):
    """Here no service runs in the directory, and the data are invalid."""
    bad = checkout / "bad.csv"
    write_csv(bad, 600, 5)
    bad.write_text(bad.read_text().replace("\nM,", "\nX,", 1))
    done = run("--data", "bad.csv", "--run", "elsewhere", cwd=checkout)
    assert done.returncode == 1
    assert "no placement in elsewhere: the version will not be rolled out" in done.stdout
    error, where = done.stderr.splitlines()
    assert error.startswith("validate-data: bad.csv: row ")
    assert "column 'gender': must be one of M, F, got 'X'" in error
    assert "Traceback" not in (checkout / where.removeprefix("The full log is ")).read_text()
    wrong = run("--groups", "gender", cwd=checkout)
    assert wrong.returncode == 2
    assert "argument --groups: must be a list in JSON, got gender" in wrong.stderr
    unknown = run("--max_worse", '{"acuracy": 0.02, "brier": 0.01}', cwd=checkout)
    assert unknown.returncode == 1
    assert "check-bounds: max_worse: 'acuracy' is no metric, expected some of accuracy, " in unknown.stderr
    assert "train-model" not in unknown.stdout


def test_a_verbose_run_prints_its_whole_log(tmp_path):
    done = run("--verbose", "--max_psi", "-1", "--artifacts", "runs", cwd=tmp_path)
    assert done.returncode == 1
    (log,) = tmp_path.glob("runs/*/log.txt")
    assert log.read_text() == re.sub(r"\x1b\[\d+m", "", done.stdout)
    error, where = done.stderr.splitlines()
    assert error == "check-bounds: max_psi: must be a finite number, minimum 0, got -1.0"
    assert "    check-bounds: ERROR: max_psi: must be" in done.stdout
    assert where == f"The full log is {log.relative_to(tmp_path)}"


def test_an_interrupted_run_says_where_its_log_is(tmp_path):
    command = [str(PYTHON), "-m", "pipelines.run"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | VARIABLES,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.read(len("check-bounds")) == "check-bounds"
        os.killpg(running.pid, signal.SIGINT)
        _, error = running.communicate(timeout=TIMEOUT_S)
    assert running.returncode == 130
    (log,) = tmp_path.glob(".run/pipeline/*/log.txt")
    assert error == f"\ninterrupted; the log so far is {log.relative_to(tmp_path)}\n"


def test_artifacts_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").touch()
    done = run("--artifacts", "file", cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"--artifacts: cannot write file/\S+: Not a directory\n", done.stderr)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    file = tmp_path / "missing" / "pipeline.yaml"
    done = run("--compile", file)
    assert done.returncode == 2
    assert done.stderr.startswith(f"--compile: cannot write {file}: ")
    assert "Traceback" not in done.stderr


def test_the_help_explains_each_parameter():
    """Kubeflow's page shows the same texts."""
    shown = " ".join(run("--help").stdout.split())
    spec, _ = yaml.safe_load_all((HERE / "placement.yaml").read_text())
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert len(parameters) == 19
    for name, parameter in parameters.items():
        assert f"--{name} VALUE {' '.join(parameter['description'].split())}" in shown
    assert "(default: 2000)" in shown
