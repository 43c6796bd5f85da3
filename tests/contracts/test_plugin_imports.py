"""Plugins use public names only: every import of every plugin and of the tutorial is looked at."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import vu_core

ROOT = Path(__file__).resolve().parents[2]
PUBLIC_MODULES = (
    "vu_core.ops",
    "vu_core.adapters",
    "vu_core.training",
    "vu_core.testing",
    "vu_core.workbench",
    "vu_core.exporting",
)
LAZY = ("diffusers", "transformers", "peft", "accelerate")
TORCH_FREE = ("torch", "numpy", *LAZY, "safetensors.torch", "torchvision", "PIL")
PLUGINS = sorted(
    path.parent for path in [*ROOT.glob("plugins/*/pyproject.toml"), *ROOT.glob("docs/tutorial/*/pyproject.toml")]
)
MODULE_OF = {
    directory.name: next(path.parent.name for path in directory.glob("src/*/__init__.py")) for directory in PLUGINS
}
SOURCES = [(directory, path) for directory in PLUGINS for path in sorted(directory.glob("src/**/*.py"))]


def imports(path: Path) -> Iterator[tuple[str, tuple[str, ...], bool, int]]:
    """Yield (module, names, at the top level and run, line) of every import; type-checking blocks are not run."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(node)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, (), id(node) not in lazy, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide where a name comes from"
            yield node.module or "", tuple(alias.name for alias in node.names), id(node) not in lazy, node.lineno


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def dependencies(directory: Path) -> set[str]:
    project = tomllib.loads((directory / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {re.split(r"[\s<>=!~;\[]", entry)[0].lower().replace("_", "-") for entry in project.get("dependencies", [])}


def is_below(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in names)


def test_there_are_plugins_and_the_tutorial() -> None:
    assert {"vu-canvas", "vu-diffusers", "vu-fade", "vu-metrics", "vu-tutorial-plugin"} <= set(MODULE_OF)


@pytest.mark.parametrize(("directory", "path"), SOURCES, ids=lambda value: value.name)
def test_only_public_names_of_the_core(directory: Path, path: Path) -> None:
    for module, names, _, line in imports(path):
        if module.split(".")[0] == "vu_cli":
            raise AssertionError(f"{path.name}:{line} imports the command line")
        if module.split(".")[0] != "vu_core":
            continue
        if module == "vu_core":
            private = [
                name for name in names if name not in vu_core.__all__ and f"vu_core.{name}" not in PUBLIC_MODULES
            ]
            assert not private, f"{path.name}:{line} imports {private}, which are not public names of vu_core"
            assert names, f"{path.name}:{line} imports vu_core as a whole; name what is used"
        else:
            assert is_below(module, PUBLIC_MODULES), f"{path.name}:{line} imports {module}"


@pytest.mark.parametrize(("directory", "path"), SOURCES, ids=lambda value: value.name)
def test_other_plugins_only_as_dependencies(directory: Path, path: Path) -> None:
    home, allowed = MODULE_OF[directory.name], dependencies(directory)
    for module, _, _, line in imports(path):
        for distribution, other in MODULE_OF.items():
            if module.split(".")[0] == other != home:
                assert distribution in allowed, (
                    f"{path.name}:{line} imports {module}, but does not depend on {distribution}"
                )


@pytest.mark.parametrize(("directory", "path"), SOURCES, ids=lambda value: value.name)
def test_slow_libraries_are_imported_where_they_are_used(directory: Path, path: Path) -> None:
    for module, _, at_top, line in imports(path):
        if at_top:
            assert not is_below(module, LAZY), f"{path.name}:{line} imports {module} when the file is read"
            if path.name == "plugin.py":
                assert not is_below(module, TORCH_FREE), f"{path.name}:{line} imports {module}"


@pytest.mark.parametrize("directory", PLUGINS, ids=lambda value: value.name)
def test_everything_imported_is_declared(directory: Path) -> None:
    """What a plugin imports is its own, of the standard library, or a dependency that its pyproject names."""
    names = {"pil": "pillow", "huggingface_hub": "huggingface-hub", "sklearn": "scikit-learn", "yaml": "pyyaml"}
    allowed, home = dependencies(directory), MODULE_OF[directory.name]
    for path in sorted(directory.glob("src/**/*.py")):
        for module, _, _, line in imports(path):
            root = module.split(".")[0]
            distribution = names.get(root.lower(), root.lower().replace("_", "-"))
            known = root in sys.stdlib_module_names or root == home or distribution in allowed
            assert known, f"{path.relative_to(ROOT)}:{line} imports {root}, which pyproject.toml does not name"


@pytest.mark.parametrize("directory", PLUGINS, ids=lambda value: value.name)
def test_distribution_is_complete(directory: Path) -> None:
    project = tomllib.loads((directory / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == directory.name
    assert project["license"] == "Apache-2.0"
    assert project["requires-python"] == ">=3.11"
    assert all(re.search(r">=\d", entry) for entry in project["dependencies"]), "a dependency has no lower bound"
    assert (directory / "README.md").is_file()
    assert list(project["entry-points"]["vu.plugins"].values()) == [f"{MODULE_OF[directory.name]}.plugin"]


@pytest.mark.parametrize(("directory", "path"), SOURCES, ids=lambda value: value.name)
def test_no_forbidden_calls(directory: Path, path: Path) -> None:
    """No pickle, no eval, no print in plugins; training programs may print."""
    if "training" in path.parts or path.name == "train.py":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "eval", "exec", "torch.load", "torch.save"), (
                f"{path.name}:{node.lineno}: {called}"
            )
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "joblib", "dill"} & set(names), f"{path.name}:{node.lineno} imports a pickle"
