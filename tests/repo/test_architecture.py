"""The packages of the project: there are ten, imports go one way, and files stay short."""

import ast
from importlib.resources import files
from pathlib import Path

import pytest

SOURCE = Path("src/fc_lightning")
FILES = sorted(SOURCE.rglob("*.py"))
# A module imports from its own package and from packages before it in this list.
PACKAGES = [
    "utils",
    "conversation",
    "chat_template",
    "data",
    "evaluation",
    "models",
    "training",
    "callbacks",
    "commands",
    "cli",
]


def package_of(path):
    """``data`` for ``data/formats/hermes.py``; empty for a file at the root."""
    return path.relative_to(SOURCE).parts[0] if len(path.relative_to(SOURCE).parts) > 1 else ""


def imported_packages(text, folder):
    """The packages that a file in a folder (``("data", "formats")``) imports, wherever in the file it does."""
    packages = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["fc_lightning", *folder][: len(folder) + 2 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        packages |= {name.split(".")[1] for name in names if name.startswith("fc_lightning.")}
    return packages


def test_imports_are_found():
    text = (
        "import fc_lightning.cli as cli, os\nfrom fc_lightning import commands\nfrom . import sources\n"
        "def f():\n    from ..training import M\n    from fc_lightning.data.prepare import x\nfrom datasets import D\n"
    )
    assert imported_packages(text, ("data",)) == {"cli", "commands", "data", "training"}
    assert imported_packages("from ..packing import x", ("data", "formats")) == {"data"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).with_suffix("").as_posix())
def test_imports_go_one_way(path):
    own = package_of(path)
    if not own:
        return  # the root loads its names from anywhere, when they are asked for
    packages = imported_packages(path.read_text(encoding="utf-8"), path.relative_to(SOURCE).parts[:-1])
    allowed = PACKAGES[: PACKAGES.index(own) + 1]
    assert packages <= {*allowed, "__version__"}


def test_there_are_ten_packages_and_nothing_else():
    there = {path.name for path in SOURCE.iterdir() if path.name != "__pycache__"}
    assert there == {*PACKAGES, "__init__.py", "__main__.py", "py.typed"}


def test_files_are_short():
    long = {str(path): length for path in FILES if (length := len(path.read_text(encoding="utf-8").splitlines())) > 350}
    assert not long


def test_templates_are_packaged():
    folder = files("fc_lightning.chat_template") / "templates"
    chat = [folder / "turns_canonical.jinja", folder / "gemma_verbatim.jinja"]
    assert {path.name for path in folder.iterdir()} >= {"macros.jinja", *(path.name for path in chat)}
    assert all("endgeneration" in path.read_text(encoding="utf-8") for path in chat)
    assert (files("fc_lightning.utils") / "page.html.jinja").is_file()
