"""Packages import in one direction, so that a reader can learn them in order."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

#: Levels of `transformer/`, lowest first. A module imports from its own package and from lower levels.
LEVELS = (
    {"errors"},
    {"headers"},
    {"bundle"},
    {"settings", "metrics", "tracing"},
    {"protocols", "upstream"},
    {"batching", "monitoring"},
    {"explanation"},
    {"server"},
    {"options"},
    {"__main__"},
)
#: What each top-level package may import of the others.
ALLOWED = {
    "transformer": set[str](),
    "predictor": set[str](),
    "storage": {"transformer.bundle"},
    "inferenceservice": {"predictor", "storage", "transformer.bundle", "transformer.errors"},
    "training": {"storage", "transformer.bundle", "transformer.errors"},
    "scoring": {"storage", "training", "transformer.bundle", "transformer.errors"},
    "placement": {
        "benchmarks",
        "inferenceservice",
        "predictor",
        "scoring",
        "storage",
        "training",
        "transformer.bundle",
        "transformer.errors",
    },
    "pipelines": {
        "inferenceservice",
        "placement.drift",
        "predictor",
        "storage",
        "training",
        "transformer.bundle",
        "transformer.monitoring.bins",
    },
}
_OURS = {*ALLOWED, "benchmarks", "tests"}


def _modules(package: str) -> dict[str, Path]:
    """Return the modules of a package by their full names."""
    paths = (ROOT / package).rglob("*.py")
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(paths)}


def _imports(path: Path) -> set[str]:
    """Return the project's names that a file imports, also inside functions and for types only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in _OURS}


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_it_builds_on(package):
    allowed = tuple(f"{one}." for one in {*ALLOWED[package], package})
    for module, path in _modules(package).items():
        wrong = {name for name in _imports(path) if not f"{name}.".startswith(allowed)}
        assert not wrong, f"{module} imports {wrong}"


def test_the_transformers_packages_import_only_downward():
    level = {part: number for number, parts in enumerate(LEVELS) for part in parts}
    for module, path in _modules("transformer").items():
        part = module.split(".")[1]
        for name in _imports(path):
            other = name.split(".")[1]
            assert other == part or level[other] < level[part], f"{module} imports {name}"


def test_the_queue_loads_neither_grpc_nor_kserve():
    script = "import sys, transformer.batching.queue; print({'grpc', 'kserve'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_no_modules_import_each_other_in_a_cycle():
    modules = {name: path for package in sorted(_OURS) for name, path in _modules(package).items()}
    graph = {
        module: {found for name in _imports(path) if (found := _module_of(name, modules)) != module}
        for module, path in modules.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for other in sorted(graph.get(module, ())):
                visit(other, [*trail, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])


def _module_of(name: str, modules: dict[str, Path]) -> str:
    """Return the module that an imported name is, or is defined in."""
    return name if name in modules else name.rpartition(".")[0]
