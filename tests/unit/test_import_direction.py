"""The packages import in one direction, so a reader can learn them in order."""

import ast
from pathlib import Path

import pytest

from tests.support.paths import ROOT

#: Levels of `transformer/`, lowest first. A module imports from its own level's package or from lower levels.
LEVELS = (
    ("errors", "metrics", "headers", "settings"),
    ("bundle",),
    ("protocols", "upstream"),
    ("batching",),
    ("server",),
    ("options", "__main__"),
)
#: What each top-level package may import, besides itself.
TOP_LEVEL = {
    "transformer": set(),
    "storage": {"transformer.bundle"},
    "predictor": set(),
    "inferenceservice": {"predictor", "storage", "transformer.bundle", "transformer.errors"},
    "training": {"storage", "transformer.bundle"},
    "placement": {"training", "inferenceservice", "predictor", "storage", "transformer.bundle", "benchmarks"},
}


def _modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _imports(path: Path) -> set[str]:
    """Modules that a file imports, also inside functions and for types only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("package", TOP_LEVEL)
def test_packages_import_only_what_they_build_on(package):
    allowed = TOP_LEVEL[package] | {package}
    ours = {*TOP_LEVEL, "benchmarks", "tests"}
    for path in _modules(package):
        for name in _imports(path):
            if name.split(".")[0] in ours:
                assert any(f"{name}.".startswith(f"{one}.") for one in allowed), f"{path} imports {name}"


def test_transformer_packages_import_only_downward():
    level_of = {part: number for number, level in enumerate(LEVELS) for part in level}
    for path in _modules("transformer"):
        parts = _name(path).split(".")[1:]
        own = parts[0]
        if own == "__init__":
            continue
        for name in _imports(path):
            if not name.startswith("transformer."):
                continue
            other = name.split(".")[1]
            lower = level_of[other] < level_of[own]
            same_package = other == own
            # `settings` and the like are single modules, and may use each other downward in the listed order.
            assert lower or same_package or (len(LEVELS[level_of[own]]) > 1 and level_of[own] in {0, 5}), (
                f"{path} imports {name}"
            )


def test_no_modules_import_each_other_in_a_cycle():
    modules = {_name(path): path for package in TOP_LEVEL for path in _modules(package)}
    graph = {
        name: {found for one in _imports(path) if (found := _resolve(one, modules)) and found != name}
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name in done:
            return
        for other in sorted(graph[name]):
            visit(other, (*trail, name))
        done.add(name)

    for name in sorted(graph):
        visit(name, ())


def _resolve(name: str, modules: dict[str, Path]) -> str | None:
    """The module that an imported name is, or is defined in."""
    if name in modules:
        return name
    parent = name.rpartition(".")[0]
    return parent if parent in modules else None
