"""``make audit``: write the image's SBOM, and check every lock file for known vulnerabilities.

The exit status is 1 if a vulnerability is known, and 2 if the audit itself failed. An unreachable database is
reported and is no failure, so that the build does not depend on an external service.
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
#: Lock file that is checked first. Its one package is in every database of PyPI's packages.
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
#: Messages of pip-audit (2.10) and its dependencies about an unreachable service.
_UNREACHABLE = re.compile(r"ConnectionError|ConnectTimeout|ReadTimeout|ServiceError|Could not connect")


class UnreachableError(Exception):
    """The vulnerability database did not answer, or knows none of the packages."""


class AuditError(Exception):
    """The audit itself failed; the message names the file and the reason."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the SBOM, audit every lock file, and return the exit status; the arguments go to pip-audit."""
    extra = sys.argv[1:] if arguments is None else arguments
    try:
        tools = ensure(_ENVIRONMENT, progress=_report).parent
        write_sbom(tools, SBOM)
        _report(f"SBOM of the image's Python packages (CycloneDX): {SBOM.relative_to(ROOT)}")
        return audit(tools, lock_files(), extra)
    except (AuditError, InstallError) as error:
        _report(str(error))
        return 2


def lock_files() -> list[Path]:
    """List every file with pinned versions and hashes, the probe first."""
    places = ("requirements/*.txt", "predictor/environments/*.txt", "benchmarks/*.txt")
    found = {path for place in places for path in ROOT.glob(place)}
    return [PROBE, *sorted(found - {PROBE})]


def audit(tools: Path, locks: Iterable[Path], extra: Sequence[str] = ()) -> int:
    """Check every package of the lock files, report the vulnerabilities, and return the exit status."""
    known = 0
    try:
        for lock in locks:
            known += _audit_one(tools, lock, extra)
    except UnreachableError as error:
        _report(f"NOT AUDITED: the vulnerability database cannot be reached: {error}")
        _report("run it where the database can be reached, or use another one:")
        _report("make audit ARGS='--vulnerability-service osv'")
    if known:
        _report(f"{known} known vulnerabilities (counted for each lock file that has the package)")
    return 1 if known else 0


def write_sbom(tools: Path, file: Path) -> None:
    """Write the SBOM of the image's Python packages as CycloneDX JSON.

    Raises
    ------
    AuditError
        If the SBOM cannot be written.
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
    packages = _look_up(tools, lock, extra)
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    if packages and len(skipped) == len(packages):
        # A mirror of the package index has no vulnerability data; pip-audit reports that as a clean result.
        raise UnreachableError(f"{_shown(lock)}: it knows none of these packages")
    found = [(one, each) for one in packages for each in one.get("vulns", ())]
    checked = len(packages) - len(skipped)
    unknown = f", not in the database: {', '.join(skipped)}" if skipped else ""
    _report(f"{_shown(lock)}: {checked} packages, {len(found)} known vulnerabilities{unknown}")
    for package, each in found:
        fixed = ", ".join(each["fix_versions"]) or "no version yet"
        _report(f"  {package['name']} {package['version']}: {each['id']}, fixed in {fixed}")
    return len(found)


def _look_up(tools: Path, lock: Path, extra: Sequence[str]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="audit-") as directory:
        report = Path(directory) / "report.json"
        command = [str(tools / "pip-audit"), "--require-hashes", "--disable-pip", "--progress-spinner", "off"]
        output = ["--format", "json", "--output", str(report), "--requirement", str(lock)]
        done = subprocess.run([*command, *output, *extra], capture_output=True, text=True, check=False)
        if report.exists():  # the exit status is 1 for findings and for errors
            packages: list[dict[str, Any]] = json.loads(report.read_text())["dependencies"]
            return packages
    if _UNREACHABLE.search(done.stderr):
        raise UnreachableError(f"{_shown(lock)}: {_last_line(done.stderr)}")
    raise AuditError(f"{_shown(lock)}: {_last_line(done.stderr)}")


def _shown(lock: Path) -> Path:
    return lock.relative_to(ROOT) if lock.is_relative_to(ROOT) else lock


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it ended without a message"])[-1]


def _report(line: str) -> None:
    sys.stderr.write(f"audit: {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
