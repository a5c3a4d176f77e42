"""The command `make audit`: writes the image's SBOM, and checks all lock files for known vulnerabilities.

The exit status is 1 if there are known vulnerabilities, 2 if the audit itself failed. If the vulnerability
database cannot be reached, the audit says so and the status is 0: a build must not depend on that service.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from predictor.environment import Environment, InstallError, ensure

ROOT = Path(__file__).resolve().parent.parent
#: Lock file to check first: a database that does not know its one package, uv, does not know PyPI at all.
PROBE = ROOT / "requirements/uv.txt"
SBOM = ROOT / ".run/transformer.cdx.json"

_ENVIRONMENT = Environment(
    name="audit",
    lock=ROOT / "requirements/audit.txt",
    contents="pip-audit and cyclonedx-bom",
    command="make audit",
)
_UNINSTALLED = re.compile(r"uninstall --yes ([\w -]+)")
_REQUIREMENT = re.compile(r"^([\w.-]+)==(?:.*\\\n)*.*\n", re.MULTILINE)
#: Errors of pip-audit (2.10) and its libraries when the database cannot be reached.
_UNREACHABLE = re.compile(r"ConnectionError|ConnectTimeout|ReadTimeout|ServiceError|Could not connect")


class UnreachableError(Exception):
    """The vulnerability database does not answer, or knows none of the packages."""


class AuditError(Exception):
    """The audit of a file failed; the message names the file and the reason."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the SBOM, audit all lock files, and return the exit status; arguments are passed to pip-audit."""
    extra = sys.argv[1:] if arguments is None else arguments
    try:
        tools = ensure(_ENVIRONMENT, progress=_log).parent
        write_sbom(tools, SBOM)
        _log(f"SBOM of the image's Python packages (CycloneDX): {SBOM.relative_to(ROOT)}")
        return audit(tools, lock_files(), extra)
    except (AuditError, InstallError) as error:
        _log(str(error))
        return 2


def lock_files() -> list[Path]:
    """Return all files with pinned versions and hashes, the probe first."""
    directories = ("requirements", "predictor/environments", "benchmarks", "notebooks", "pipelines")
    patterns = [f"{directory}/*.txt" for directory in directories]
    found = {path for pattern in patterns for path in ROOT.glob(pattern)}
    return [PROBE, *sorted(found - {PROBE})]


def audit(tools: Path, locks: Iterable[Path], extra: Sequence[str] = ()) -> int:
    """Check all packages of the lock files, print known vulnerabilities, and return the exit status."""
    known = 0
    try:
        for lock in locks:
            known += _audit_one(tools, lock, extra)
    except UnreachableError as error:
        _log(f"NOT AUDITED: the vulnerability database cannot be reached: {error}")
        _log(
            "run it with network access, or use another database: "
            "make audit ARGS='--vulnerability-service osv'"
        )
    if known:
        _log(f"{known} known vulnerabilities (a package counts once per lock file)")
    return 1 if known else 0


def write_sbom(tools: Path, file: Path) -> None:
    """Write the image's Python packages as CycloneDX JSON.

    Raises
    ------
    AuditError
        If it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    command = [str(tools / "cyclonedx-py"), "requirements", "--pyproject", str(ROOT / "pyproject.toml")]
    output = ["--output-reproducible", "--output-format", "JSON", "--output-file", str(file), "-"]
    done = subprocess.run(
        [*command, *output], input=installed_in_the_image(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise AuditError(f"{file}: {_last_line(done.stderr)}")


def installed_in_the_image() -> str:
    """Return the transformer's lock file without the packages that its Dockerfile removes."""
    removed = _UNINSTALLED.findall((ROOT / "Dockerfile.transformer").read_text())
    names = {name for group in removed for name in group.split()}
    text = (ROOT / "requirements/transformer.txt").read_text()
    return _REQUIREMENT.sub(lambda one: "" if one[1] in names else one[0], text)


def _audit_one(tools: Path, lock: Path, extra: Sequence[str]) -> int:
    packages = _run_pip_audit(tools, lock, extra)
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    if packages and len(skipped) == len(packages):
        # A mirror of PyPI has no vulnerability data, and pip-audit reports that as a clean result.
        raise UnreachableError(f"{_relative(lock)}: it knows none of these packages")
    found = [(package, known) for package in packages for known in package.get("vulns", ())]
    checked = len(packages) - len(skipped)
    unknown = f", not in the database: {', '.join(skipped)}" if skipped else ""
    _log(f"{_relative(lock)}: {checked} packages, {len(found)} known vulnerabilities{unknown}")
    for package, known in found:
        fixed = ", ".join(known["fix_versions"]) or "no version yet"
        _log(f"  {package['name']} {package['version']}: {known['id']}, fixed in {fixed}")
    return len(found)


def _run_pip_audit(tools: Path, lock: Path, extra: Sequence[str]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="audit-") as directory:
        report = Path(directory) / "report.json"
        command = [str(tools / "pip-audit"), "--require-hashes", "--disable-pip", "--progress-spinner", "off"]
        output = ["--format", "json", "--output", str(report), "--requirement", str(lock)]
        done = subprocess.run([*command, *output, *extra], capture_output=True, text=True, check=False)
        if report.exists():  # the status is 1 both with findings and with errors
            packages: list[dict[str, Any]] = json.loads(report.read_text())["dependencies"]
            return packages
    if _UNREACHABLE.search(done.stderr):
        raise UnreachableError(f"{_relative(lock)}: {_last_line(done.stderr)}")
    raise AuditError(f"{_relative(lock)}: {_last_line(done.stderr)}")


def _relative(lock: Path) -> Path:
    return lock.relative_to(ROOT) if lock.is_relative_to(ROOT) else lock


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no error message"])[-1]


def _log(line: str) -> None:
    sys.stderr.write(f"audit: {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
