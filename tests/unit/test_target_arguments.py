"""Options of the commands that act on an InferenceService."""

import pytest

from placement import cli


@pytest.mark.parametrize("seconds", ["0", "-5", "nan", "inf", "soon"])
def test_a_timeout_that_cannot_be_kept_is_refused(seconds, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["rollout", "pvc://models/placement/v2", "--namespace", "a", f"--timeout={seconds}"])
    assert ended.value.code == 2
    assert f"--timeout: must be a number of seconds, at least 1, got {seconds}" in capsys.readouterr().err


@pytest.mark.parametrize("copy", ["pvc://models", "=models", "pvc://models="])
def test_a_copy_without_its_uri_is_refused(copy, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["rollback", "--namespace", "a", f"--bundle={copy}"])
    assert ended.value.code == 2
    assert f"--bundle: must be URI=COPY, got {copy}" in capsys.readouterr().err


def test_a_missing_local_service_is_told_from_a_cluster(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["rollout", "pvc://models/placement/v2"]) == 1
    assert "For a service in a cluster, add --namespace or --context" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "versions"])
def test_a_command_that_changes_nothing_has_no_timeout(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--timeout=30"])
    assert "unrecognized arguments: --timeout=30" in capsys.readouterr().err
