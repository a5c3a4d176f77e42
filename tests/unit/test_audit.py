"""`make audit` reports known vulnerabilities of the locked packages, and fails if it cannot look them up."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

_SPEC = importlib.util.spec_from_file_location("audit", ROOT / "requirements/audit.py")
assert _SPEC is not None
assert _SPEC.loader is not None
audit = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(audit)

CLEAN = {"name": "flask", "version": "3.0", "vulns": []}
UNKNOWN = {"name": "uv", "skip_reason": "Dependency not found on PyPI and could not be audited: uv (1.0)"}
VULNERABLE = {
    "name": "jinja2",
    "version": "3.1.2",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1.3"]}, {"id": "PYSEC-2", "fix_versions": []}],
}


@pytest.fixture
def tools(tmp_path: Path):
    """Create a directory with a fake pip-audit that prints the given answers, one for each lock file."""

    def make(*answers: list[dict] | str) -> Path:
        for number, answer in enumerate(answers):
            (tmp_path / f"answer-{number}").write_text(json.dumps(answer))
        script = tmp_path / "pip-audit"
        script.write_text(f"""#!{sys.executable}
import json, pathlib, sys
here = pathlib.Path({str(tmp_path)!r})
asked = here / "asked"
number = len(asked.read_text().splitlines()) if asked.exists() else 0
with asked.open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
answer = json.loads((here / f"answer-{{number}}").read_text())
if isinstance(answer, str):
    sys.exit(answer)
report = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
report.write_text(json.dumps({{"dependencies": answer}}))
sys.exit(any(one.get("vulns") for one in answer))
""")
        script.chmod(0o755)
        return tmp_path

    return make


def locks(number: int) -> list[Path]:
    return [Path(f"/locks/{name}.txt") for name in "abc"[:number]]


def calls_of(tools: Path) -> list[str]:
    return (tools / "asked").read_text().splitlines()


def test_a_known_vulnerability_is_reported_and_fails_the_audit(tools, capsys) -> None:
    assert audit.audit(tools([CLEAN], [CLEAN, VULNERABLE]), locks(2)) == 1
    printed = capsys.readouterr().err
    assert "/locks/a.txt: 1 packages, 0 known" in printed
    assert "jinja2 3.1.2: PYSEC-1, fixed in 3.1.3" in printed
    assert "PYSEC-2, fixed in no version yet" in printed
    assert "2 known vulnerabilities" in printed


def test_an_audit_without_findings_succeeds(tools, capsys) -> None:
    assert audit.audit(tools([CLEAN], [CLEAN]), locks(2)) == 0
    assert "NOT AUDITED" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "silence",
    [
        "requests.exceptions.ConnectionError: Failed to resolve 'api.osv.dev'",
        "pip_audit._service.interface.ServiceError",
        [UNKNOWN],  # pip-audit prints "No known vulnerabilities found" and exits with 0.
    ],
    ids=["no name", "error", "an index without vulnerabilities"],
)
def test_an_unreachable_database_is_reported_once(silence, tools, capsys) -> None:
    directory = tools(silence, [CLEAN])
    assert audit.audit(directory, locks(2)) == 0
    assert (
        "NOT AUDITED: the vulnerability database cannot be reached: /locks/a.txt" in capsys.readouterr().err
    )
    assert len(calls_of(directory)) == 1


def test_a_finding_fails_the_audit_although_the_database_becomes_unreachable(tools, capsys) -> None:
    assert audit.audit(tools([VULNERABLE], "requests.exceptions.ReadTimeout: x"), locks(2)) == 1
    assert "NOT AUDITED" in capsys.readouterr().err


def test_packages_that_the_database_does_not_know_are_listed(tools, capsys) -> None:
    assert audit.audit(tools([CLEAN, UNKNOWN]), locks(1)) == 0
    assert "1 packages, 0 known vulnerabilities, not in the database: uv" in capsys.readouterr().err


def test_any_other_failure_of_pip_audit_fails_the_audit(tools) -> None:
    with pytest.raises(audit.AuditError, match=r"/locks/a.txt: invalid hash"):
        audit.audit(tools("ERROR\ninvalid hash"), locks(1))


def test_further_arguments_go_to_pip_audit(tools) -> None:
    directory = tools([CLEAN])
    audit.audit(directory, locks(1), ["--vulnerability-service", "osv"])
    assert calls_of(directory)[0].endswith("--requirement /locks/a.txt --vulnerability-service osv")


def test_every_lock_file_is_audited() -> None:
    elsewhere = {"models", "build"}
    text_files = [
        path
        for directory in ROOT.iterdir()
        if directory.is_dir() and not directory.name.startswith(".") and directory.name not in elsewhere
        for path in directory.rglob("*.txt")
    ]
    pinned = {path for path in text_files if "--hash=sha256:" in path.read_text()}
    assert set(audit.lock_files()) == pinned
    assert audit.lock_files()[0] == audit.PROBE


def test_the_sbom_covers_the_packages_of_the_image() -> None:
    def names(text: str) -> set[str]:
        return set(re.findall(r"^([\w.-]+)==", text, re.MULTILINE))

    lock = (ROOT / "requirements/transformer.txt").read_text()
    assert names(lock) - names(audit.installed_in_the_image()) == {"grpcio-tools", "setuptools", "pillow"}
    assert lock.endswith(audit.installed_in_the_image()[-200:])


def test_lock_files_name_no_registry() -> None:
    for lock in audit.lock_files():
        assert "://" not in lock.read_text(), lock.name
        assert "--index-url" not in lock.read_text()
