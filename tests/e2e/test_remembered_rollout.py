"""`placement up` serves what was rolled out last, also after a kill, and says so."""

import json
import re
import shutil
from pathlib import Path

import psutil

from tests.support.paths import MANIFEST
from tests.support.placement_command import COMMAND_TIMEOUT_S, PlacementUp, run_placement
from tests.support.version_pairs import VersionPair
from training.candidates import SAMPLE


def spec_with(version: Path, file: Path) -> Path:
    """Write the project's spec with another bundle."""
    file.write_text(re.sub(r"pvc://\S+", str(version), MANIFEST.read_text()))
    return file


def test_a_killed_service_starts_again_with_what_was_rolled_out(pair: VersionPair, tmp_path: Path) -> None:
    old, new = str(pair.old), str(pair.new)
    spec = spec_with(pair.old, tmp_path / "spec.yaml")
    with PlacementUp(None, tmp_path / "up", "-f", spec) as up:
        up.wait_for("ready")
        assert f"starting {old}: the spec names it" in up.output()
        done = run_placement("rollout", new, "--run", up.directory)
        assert done.returncode == 0, done.stderr
        family = up.family()
        # The ingress is a part of this process. Nothing of it may be left when it is killed.
        up.process.kill()
        assert up.process.wait(COMMAND_TIMEOUT_S) == -9
        assert psutil.wait_procs(family, timeout=30)[1] == []
    with PlacementUp(None, tmp_path / "up", "-f", spec) as up:
        up.wait_for("ready")
        assert f"starting {new}: it was rolled out on " in up.output()
        assert f"; the spec names {old}, which --model {old} starts" in up.output()
        content = json.loads(run_placement("status", "--run", up.directory, "--json").stdout)
        assert (content["predictor_uri"], content["previous_uri"]) == (new, old)


def test_a_model_without_a_spec_starts_again_without_arguments(trained_bundle: Path, tmp_path: Path) -> None:
    model = tmp_path / "models" / "churn" / "v1"
    shutil.copytree(trained_bundle, model)
    bundle = {**json.loads((model / "bundle.json").read_text()), "name": "churn"}
    (model / "bundle.json").write_text(json.dumps(bundle))
    with PlacementUp(model, tmp_path / "up") as up:
        up.wait_for("ready")
        grpc = ("--protocol", "grpc", "--url", f"127.0.0.1:{up.grpc_port}")
        done = run_placement("predict", *grpc, "--json", stdin=json.dumps(SAMPLE))
        assert done.returncode == 0, done.stderr
        (predicted,) = json.loads(done.stdout)
        done = run_placement("versions", "--storage", tmp_path / "models", "--run", up.directory, "--json")
        assert [(one["uri"], one["serves"]) for one in json.loads(done.stdout)] == [(str(model), ["serves"])]
    with PlacementUp(None, tmp_path / "up", "--once", "--json", cwd=tmp_path) as up:
        output, _ = up.process.communicate(timeout=COMMAND_TIMEOUT_S)
        assert up.process.returncode == 0, up.output()
        assert "starting models/churn/v1: the last start names it" in up.output()
    assert predicted == json.loads(output)["prediction"] | {"model_version": "v1"}
    shutil.rmtree(model)
    with PlacementUp(None, tmp_path / "up", "--once", cwd=tmp_path) as up:
        assert up.process.wait(COMMAND_TIMEOUT_S) == 1
        error = up.output().splitlines()[-1]
    assert error.startswith("placement up: models/churn/v1: no version here, ")
    assert error.endswith(
        "; it ran here last: to start another one, name its bundle with --model, or its spec with -f"
    )


def test_a_version_that_no_longer_starts_says_how_to_start_another(pair: VersionPair, tmp_path: Path) -> None:
    record: dict[str, object] = {
        "spec_uri": str(pair.old),
        "uri": f"{tmp_path}/v7",
        "history": [],
        "canary": None,
    }
    content = {"services": {"default/placement": {**record, "at": "2026-01-02T03:04:05+00:00"}}}
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "rolled_out.json").write_text(json.dumps(content))
    with PlacementUp(None, tmp_path / "up", "-f", spec_with(pair.old, tmp_path / "spec.yaml")) as up:
        assert up.process.wait(COMMAND_TIMEOUT_S) == 1
        error = up.output().splitlines()[-1]
    assert error.startswith(f"placement up: {tmp_path}/v7: no version here, bundle.json is missing; ")
    assert error.endswith(": to start another version, name it with --model URI")
