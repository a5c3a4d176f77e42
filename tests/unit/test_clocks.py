"""No duration and no order depends on a clock that can jump."""

import ast
from pathlib import Path

import pytest

from tests.support.paths import ROOT

#: Functions that read a clock which an operator or NTP can set.
_JUMPING = {"time.time", "time.time_ns", "time.localtime", "time.gmtime", "datetime.now", "datetime.utcnow"}
#: Uses that compare with times of a file system, or record when something was made.
_ALLOWED = {
    ("storage/directories.py", "time.time"),
    ("inferenceservice/local/rolled_out.py", "datetime.now"),
    ("inferenceservice/local/running_process.py", "datetime.now"),
}


def _calls(path: Path) -> set[str]:
    """Return the functions that a module calls, with the last part of their module's name."""
    called = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            called.add(f"{name}.{node.func.attr}")
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            called |= {f"time.{alias.name}" for alias in node.names}
    return called


@pytest.mark.parametrize("package", ["transformer", "inferenceservice", "storage", "placement", "predictor"])
def test_durations_are_measured_with_a_clock_that_does_not_jump(package):
    used = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in (ROOT / package).rglob("*.py")
        for name in _calls(path) & _JUMPING
    }
    assert used <= _ALLOWED
