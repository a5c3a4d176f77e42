"""The notebook runs from its first cell to its last, in the environment that `make notebook` installs."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from notebooks.__main__ import ENVIRONMENT, HERE, VARIABLES
from predictor.environment import installed

NOTEBOOK = HERE / "placement.ipynb"
PYTHON = installed(ENVIRONMENT)

pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="the notebook's environment is missing: make notebook ARGS=--install"
)


def run(module: str, *arguments: str | Path) -> str:
    command = [str(PYTHON), "-m", module, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | VARIABLES, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def cells(text: str) -> list[tuple[str, str]]:
    return [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]


def test_the_notebook_has_the_cells_of_its_text_and_no_outputs():
    text = NOTEBOOK.read_text()
    assert cells(text) == cells(run("jupytext", "--to", "ipynb", "--output", "-", HERE / "placement.md"))
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert {(len(cell["outputs"]), cell["execution_count"]) for cell in code} == {(0, None)}


def test_the_notebook_serves_and_explains_the_model(tmp_path):
    executed = tmp_path / "executed.ipynb"
    run("jupyter", "execute", f"--output={executed}", NOTEBOOK)
    outputs = [
        "".join(output.get("text", output.get("data", {}).get("text/plain", "")))
        for cell in json.loads(executed.read_text())["cells"]
        if cell["cell_type"] == "code"
        for output in cell["outputs"]
    ]
    assert "version v1\n" in outputs
    (v1,) = [eval(text) for text in outputs if text.startswith("[{'placement': ")]
    (v2,) = [eval(text) for text in outputs if text.startswith("{'placement': ")]
    assert [one["placement_probability"] for one in v1] == v2["placement_probability"]
    assert outputs[-1] == "0", "the service ends with status 0"
