"""A killed writer leaves a complete version or none."""

import random
import signal
import subprocess
import sys
import time

from storage.bundles import fetch, versions
from tests.support.paths import ROOT


def test_a_writer_killed_at_any_moment_leaves_no_incomplete_version(trained_bundle, tmp_path):
    for attempt, seconds in enumerate([0.5, *(random.uniform(0.02, 0.25) for _ in range(4))]):
        program = [sys.executable, "-m", "tests.support.bundle_writer"]
        arguments = [trained_bundle, tmp_path, str(1000 * attempt)]
        with subprocess.Popen([*program, *arguments], cwd=ROOT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(seconds)
            writer.send_signal(signal.SIGKILL)
    seen = versions(tmp_path, "placement")
    assert seen
    for path in (tmp_path / "placement").glob("v*"):
        assert path.name in seen
        # Fetching compares the model's digest.
        fetch(path, tmp_path / "mnt" / path.name)
