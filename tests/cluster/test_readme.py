"""The README's commands for clusters work, one after another, in a fresh namespace."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from predictor.process import free_ports
from tests.support.paths import ROOT
from tests.support.real_cluster import ClusterNamespace, cluster_namespace

README = (ROOT / "README.md").read_text()
#: Seconds for one block of commands.
TIMEOUT_S = 900


def blocks(mark: str) -> list[str]:
    """Return the commands of the blocks that follow a mark."""
    return re.findall(rf"<!-- {mark} -->\n```bash\n(.*?)```", README, re.DOTALL)


class Shell:
    """A shell in a checkout, for a namespace that its user calls `default`."""

    def __init__(self, directory: Path, namespace: ClusterNamespace) -> None:
        self._directory = directory
        self.namespace = namespace
        self._env = {**os.environ, "KUBECONFIG": str(namespace.kubeconfig)}
        (directory / ".venv").symlink_to(sys.prefix)
        (directory / "inferenceservice").symlink_to(ROOT / "inferenceservice")

    def start(self, code: str) -> subprocess.Popen[str]:
        """Start commands."""
        return subprocess.Popen(
            [
                "bash",
                "-euo",
                "pipefail",
                "-c",
                code.replace("namespace default", f"namespace {self.namespace.name}"),
            ],
            cwd=self._directory,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, code: str) -> str:
        """Run commands, and return their output."""
        process = self.start(code)
        output, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, output
        return output


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with cluster_namespace(tmp_path_factory.mktemp("readme")) as namespace:
        yield Shell(tmp_path_factory.mktemp("checkout"), namespace)


def test_the_steps_lead_to_a_prediction_a_rollout_and_a_rollback(shell: Shell) -> None:
    copy, serve, roll_out, apply = blocks("in a cluster")
    # A second copy changes nothing.
    shell.run(copy)
    shell.run(copy)
    shell.run(serve)
    [forward], [ask] = blocks("in a cluster, until stopped"), blocks("in a cluster, with forwarded ports")
    port, grpc_port = free_ports(2)
    forwarding = shell.start("exec " + forward.replace("8080:", f"{port}:").replace("8081:", f"{grpc_port}:"))
    try:
        assert forwarding.stdout is not None
        assert "Forwarding" in forwarding.stdout.readline()
        answer = shell.run(ask.replace("predict", f"predict --url http://127.0.0.1:{port}"))
    finally:
        forwarding.terminate()
        forwarding.communicate()
    assert answer.rstrip().endswith("v1")
    output = shell.run(roll_out)
    assert "v2 serves" in output
    assert output.endswith("v1 serves\n")
    shell.run(apply)
    shell.namespace.wait_until_serving("pvc://models/placement/v2")


def test_the_plain_way_serves(shell: Shell) -> None:
    """In the same namespace: the names are those that KServe has used, so its service goes first."""
    shell.namespace.delete_service()
    [serve] = blocks("in a plain cluster")
    shell.run(serve)
