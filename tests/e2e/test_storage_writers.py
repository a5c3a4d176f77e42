"""A killed writer leaves a complete version or none."""

import random
import signal
import subprocess
import sys
import time

from storage.bundles import fetch, versions
from tests.support.paths import ROOT

_WRITER = """
import sys
from itertools import count
from storage.bundles import publish
from tests.support.bundle_copies import copied
from transformer.bundle.format import load_bundle
template = load_bundle(sys.argv[1])
print("ready", flush=True)
for number in count(int(sys.argv[3])):
    model = bytes([number % 256]) * 2_000_000
    publish(copied(template, f"v{number}", model), model, sys.argv[2])
"""


def test_a_writer_killed_at_any_moment_leaves_no_incomplete_version(trained_bundle, tmp_path):
    for attempt, seconds in enumerate([0.5, *(random.uniform(0.02, 0.25) for _ in range(4))]):
        arguments = [sys.executable, "-c", _WRITER, str(trained_bundle), str(tmp_path), str(1000 * attempt)]
        with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(seconds)
            writer.send_signal(signal.SIGKILL)
    seen = versions(tmp_path, "placement")
    assert seen
    for path in (tmp_path / "placement").glob("v*"):
        assert path.name in seen
        fetch(path, tmp_path / "mnt" / path.name)  # Fetching compares the model's digest.
