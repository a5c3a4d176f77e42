"""A run of the pipeline prints a line for each step, and keeps everything in its log."""

import io
import re

import pytest

from pipelines.run_output import RunOutput


@pytest.fixture
def log():
    return io.StringIO()


@pytest.fixture
def terminal():
    return io.StringIO()


@pytest.fixture
def output(log, terminal):
    return RunOutput(log, terminal, verbose=False)


def run_step(output: RunOutput, name: str, status: str, *lines: str) -> None:
    """Print what Kubeflow's local runner prints for a step."""
    shown = f"\x1b[96m{name!r}\x1b[0m"
    print(f"09:00:00.001 - INFO - Executing task {shown}", file=output)
    for line in lines:
        print("    ", end="", file=output)
        print(line, file=output)
    level = "INFO" if status == "SUCCESS" else "ERROR"
    print(f"09:00:01.001 - {level} - Task {shown} finished with status \x1b[92m{status}\x1b[0m", file=output)


def without_seconds(terminal: io.StringIO) -> str:
    return re.sub(r" +\d+\.\d s", " N s", terminal.getvalue())


def test_a_step_that_ends_is_a_line_with_its_messages_and_warnings(output, log, terminal):
    run_step(output, "find-serving", "SUCCESS", "find-serving: v1 serves", "find-servings: other")
    run_step(output, "roll-out", "SUCCESS", "find-serving: again", "WARNING: slow", "roll-out: v2 serves")
    assert without_seconds(terminal) == (
        f"find-serving N s  v1 serves\nroll-out N s  WARNING: slow\n{' ' * 28}v2 serves\n"
    )
    assert output.failures == []
    assert "09:00:00.001 - INFO - Executing task 'roll-out'\n    find-serving: again\n" in log.getvalue()
    assert "\x1b" not in log.getvalue()


def test_a_step_that_fails_says_why(output, terminal):
    errors = ["check-gate: ERROR: v2 must not serve: one", "check-gate: ERROR: v2 must not serve: two"]
    run_step(output, "check-gate", "FAILURE", "check-gate: a message", *errors, "progress")
    assert output.failures == ["check-gate: v2 must not serve: one", "check-gate: v2 must not serve: two"]
    assert without_seconds(terminal) == f"check-gate N s  failed\n{' ' * 28}a message\n"


def test_a_step_that_ends_without_an_error_shows_its_last_line(output):
    traceback = ("Traceback (most recent call last):", "KeyError: 'age'")
    run_step(output, "train-model", "FAILURE", "train-model: v2", "WARNING: slow", *traceback, "")
    assert output.failures == ["train-model: ended unexpectedly, after: KeyError: 'age'"]


def test_a_step_cannot_end_another_one(output, terminal):
    line = "09:00:00.002 - INFO - Executing task 'roll-out'"
    run_step(output, "find-serving", "SUCCESS", line, "find-serving: v1 serves")
    assert without_seconds(terminal) == "find-serving N s  v1 serves\n"
