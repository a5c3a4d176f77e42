"""The README and the other pages are true: commands run, tables match the code, links and files exist."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inferenceservice import spec
from inferenceservice.local.local_service import LocalService
from placement.cli import COMMANDS, main
from tests.support.inference_service import SPEC
from tests.support.paths import ROOT
from tests.support.placement_command import PlacementUp
from tests.support.sync_processes import running_service
from training.candidates import PLACEMENT
from training.generator import generate
from transformer.options import parser

README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def snippets(mark: str) -> list[tuple[str, str]]:
    """Return language and content of the blocks that follow a mark, on all pages."""
    text = "\n".join(page.read_text() for page in PAGES)
    return re.findall(rf"<!-- {mark} -->\n```(\w+)\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def running(trained_bundle, tmp_path_factory) -> Iterator[LocalService]:
    with running_service(SPEC, trained_bundle, tmp_path_factory.mktemp("logs")) as served:
        yield served


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A directory with the README's `.venv`, in which its commands run."""
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    return tmp_path


def run(language: str, code: str, directory: Path) -> str:
    command = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("language", "code"), snippets("tested"))
def test_the_requests_are_answered(language, code, running, checkout):
    here = code.replace("http://127.0.0.1:8080", running.url).replace("127.0.0.1:8081", running.grpc_address)
    here = here.replace("placement predict", f"placement predict --url {running.url}")
    answer = run(language, here, checkout)
    assert '"error":' not in answer
    assert "placement" in answer or "version" in answer or "v1" in answer


def test_the_training_of_campus_candidates_works(checkout):
    dataset = generate(60, seed=5)
    header = [*PLACEMENT.signature.names, "status"]
    rows = [
        [*map(str, candidate.values()), str(label)]
        for candidate, label in zip(dataset.candidates, dataset.labels, strict=True)
    ]
    (checkout / "candidates.csv").write_text("\n".join(map(",".join, [header, *rows])))
    ((language, code),) = snippets("trains")
    assert "uri" in run(language, code, checkout)


def test_the_walk_with_own_data_works_from_the_table_to_answers(checkout):
    """In an empty directory, with the files that the commands make."""
    walk = [code for _, code in snippets("walk")]
    assert [code.split()[1] for code in walk] == ["init", "init", "train", "spec"]
    for code in walk:
        run("bash", code, checkout)
    assert spec.read(checkout / "churn.yaml").storage_uri == "pvc://models/churn/v1"
    ((_, serve),) = snippets("serves churn")
    assert serve.endswith("placement up --model models/churn/v1\n")
    with PlacementUp(Path("models/churn/v1"), checkout / ".run", cwd=checkout) as up:
        up.wait_for("ready")
        asks = snippets("asks churn")
        assert len(asks) == 2
        answers = [run(language, with_port(code, up.port), checkout) for language, code in asks]
    assert json.loads(answers[0])["predictions"][0]["churn_probability"] > 0.5
    header, *rows = (checkout / "predictions.csv").read_text().splitlines()
    assert header.endswith(",churn,prediction,probability,version")
    assert len(rows) == 500


def test_a_pickle_gets_answers_with_three_commands(checkout):
    run("bash", ".venv/bin/placement init churn.csv --example", checkout)
    (fits,), (imports,), (serves,), (asks,) = (
        snippets(f"{mark} churned.pkl") for mark in ("fits", "imports", "serves", "asks")
    )
    run(*fits, checkout)
    assert "uri       models/churned/v1" in run(*imports, checkout)
    assert serves[1].endswith("placement up --model models/churned/v1\n")
    with PlacementUp(Path("models/churned/v1"), checkout / ".run", cwd=checkout) as up:
        up.wait_for("ready")
        answers = run(asks[0], with_port(asks[1], up.port), checkout).splitlines()
    assert len(answers) > 500


def test_a_version_is_rolled_out_and_back(trained_bundle, checkout):
    """With a training of seconds in place of the default one."""
    shutil.copytree(trained_bundle, checkout / "models/placement/v1")
    ((language, code),) = snippets("rolls out")
    fast = code.replace("placement train", "placement train --rows 60 --estimator logistic-regression")
    with PlacementUp(Path("models/placement/v1"), checkout / ".run", cwd=checkout) as up:
        up.wait_for("ready")
        output = run(language, fast, checkout)
    assert "v2 serves" in output
    assert output.endswith("v1 serves\n")


def with_port(code: str, port: int) -> str:
    url = f"http://127.0.0.1:{port}"
    return code.replace("http://127.0.0.1:8080", url).replace(
        "placement predict", f"placement predict --url {url}"
    )


def test_the_table_of_settings_matches_the_transformer():
    page = (ROOT / "docs/settings.md").read_text()
    (table,) = re.findall(r"<!-- settings -->\n(.*?)\n\n", page, re.DOTALL)
    told = dict(re.findall(r"^\| `(--\w+)` \| `?([^|`]*)`? \|", table, re.MULTILINE))
    actions = {option: action for action in parser()._actions for option in action.option_strings}
    own = {action.option_strings[0] for group in parser()._action_groups if "own" in (group.title or "")
           for action in group._group_actions}  # fmt: skip
    assert own <= set(told)
    for name, default in told.items():
        if actions[name].default not in (None, ()):
            assert str(actions[name].default) == default.strip(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in link:
            file, _, heading = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), link
            assert not heading or heading in anchors(target), link
    folders = "|".join(path.name for path in ROOT.glob("[a-z]*/"))
    for name in re.findall(rf"`((?:{folders})/[\w/.-]+)`", text):
        assert "NAME" in name or name.startswith("models/") or (ROOT / name).exists(), name


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_leads_to_every_page():
    for page in PAGES[1:]:
        assert f"]({page.relative_to(ROOT)})" in README, page.name


def test_every_make_target_in_the_docs_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:`|^)make ([a-z]+)", page.read_text(), re.MULTILINE))
        assert named <= targets, page.name


def test_every_command_and_option_of_placement_in_the_docs_exists(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for page in PAGES:
        for command, rest in re.findall(rf"placement ({'|'.join(COMMANDS)})\b([^`\n|]*)", page.read_text()):
            with pytest.raises(SystemExit):
                main([command, "--help"])
            helped = capsys.readouterr().out
            for option in re.findall(r"--[a-z][a-z-]*", rest):
                assert option in helped, f"{page.name}: placement {command} {option}"


def test_the_table_of_overlays_is_complete():
    (table,) = re.findall(r"\| overlay \|.*?\n\n", README, re.DOTALL)
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert named == {
        path.name for path in (ROOT / "inferenceservice" / "overlays").iterdir() if path.is_dir()
    }


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_help_lists_every_target():
    listed = run("bash", "make --no-print-directory help", ROOT)
    for target in ("setup", "run", "test", "check", "audit"):
        assert f"make {target} " in listed
