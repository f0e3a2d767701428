"""Private names of Lightning, transformers, PEFT and jsonargparse are used in one file per library, with reasons.

``python -m pytest tests/repo/test_private_names.py`` lists uses elsewhere; the libraries have an upper bound.
"""

import ast
import tomllib
from pathlib import Path

import pytest

SOURCE = Path("src/fc_lightning")
INTERNALS = {
    "lightning": SOURCE / "training/lightning_internals.py",
    "transformers": SOURCE / "models/transformers_internals.py",
    "peft": SOURCE / "models/peft_internals.py",
    "jsonargparse": SOURCE / "cli/jsonargparse_internals.py",
}
# Names of the standard library, jsonargparse and torch, where no public name does the same.
ALLOWED = {"_replace", "_asdict", "_fields", "_exit", "_foreach_lerp_", "_foreach_mul_", "_foreach_norm"}
ALLOWED |= {"_actions", "_subcommands_action"}
ALLOWED |= {"_dynamo"}  # of torch, whose limit of recompilations has no public name
ALLOWED |= {"_softmax_backward_data"}  # of torch, whose gradient of softmax has no public name
ALLOWED |= {"_fingerprint"}  # of a dataset of `datasets`, which has no public one
ALLOWED |= {"_is_stateful"}  # of transformers' models, where generation cannot import from `models`


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def own_names(tree):
    """Private attributes that a file defines: methods, class attributes, and what is assigned to ``self``."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def is_self(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def private_uses(text, package=frozenset()):
    """Private names that a file takes from elsewhere, as ``line: name``.

    ``package`` has those that other files define: a class may be spread over several.
    """
    tree = ast.parse(text)
    own = own_names(tree) | package
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Attribute) and not (is_self(node.value) and node.attr in own):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(("fc_lightning", "torch")):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr"):
            names = [getattr(node.args[1], "value", "")]
        yield from (f"{node.lineno}: {name}" for name in names if is_private(str(name)) and name not in ALLOWED)


def test_private_names_are_found():
    text = (
        "from lightning.x import _Loop\nclass A:\n    def __init__(self):\n        self._own = 1\n"
        "    def f(self, trainer):\n        self._own, self._theirs, trainer._own, getattr(trainer, '_x')\n"
    )
    assert sorted(private_uses(text)) == ["1: _Loop", "6: _own", "6: _theirs", "6: _x"]


FILES = sorted({*SOURCE.rglob("*.py")} - {*INTERNALS.values()})


@pytest.fixture(scope="module")
def package():
    return frozenset().union(*(own_names(ast.parse(path.read_text(encoding="utf-8"))) for path in FILES))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_private_names_are_in_one_file_per_library(path, package):
    assert list(private_uses(path.read_text(encoding="utf-8"), package)) == []


@pytest.mark.parametrize(("library", "path"), INTERNALS.items())
def test_libraries_have_an_upper_bound(library, path):
    dependencies = tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]
    (dependency,) = [name for name in dependencies if name.startswith(library)]
    assert ",<" in dependency
    assert list(private_uses(path.read_text()))  # or the bound is not needed
