"""The rooms of the package: imports go downward only, files stay short, the templates are packaged."""

import ast
from importlib.resources import files
from pathlib import Path
from typing import get_args

import pytest

SOURCE = Path("src/fc_lightning")
FILES = sorted(SOURCE.rglob("*.py"))
# Lowest first. A room imports from floors below its own; rooms of one floor do not know each other.
FLOORS = [
    {"toolcalls", "grounding", "families", "help", "words", "disk", "allocator"},
    {
        "chat_template",
        "response_template",
        "formats",
        "thoughts",
        "packing",
        "metrics",
        "attention",
        "adapters",
        "generation",
        "pages",
        "checkpoints",
        "redaction",
    },
    {"bases", "environment", "ranks", "memory", "loggers", "slurm"},
    {"constrained"},
    {"data", "modeling", "evaluation", "report"},
    {"module"},
    {"model_card"},
    {"export", "audit", "teacher"},
    {"callbacks", "chat"},
    {"mistakes"},
    {"resuming"},
    {"cli"},
    {"start"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def parts(path):
    """``("data", "sources")`` for ``data/sources.py``, ``("data",)`` for ``data/__init__.py``."""
    return tuple(part for part in path.relative_to(SOURCE).with_suffix("").parts if part != "__init__")


def imported_rooms(text, package):
    """The rooms that a file of a package imports, wherever in the file it does."""
    rooms = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["fc_lightning", *package][: len(package) + 2 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("fc_lightning.")}
    return rooms


def test_imports_are_found():
    text = (
        "import fc_lightning.cli.lightning_cli as cli, os\nfrom fc_lightning import audit\nfrom . import sources\n"
        "def f():\n    from ..module import M\n    from fc_lightning.data.prepare import x\nfrom datasets import D\n"
    )
    assert imported_rooms(text, ("data",)) == {"cli", "audit", "data", "module"}
    assert imported_rooms("from .packing import x", ()) == {"packing"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(parts(path)) or "__init__")
def test_imports_go_downward(path):
    own = parts(path)
    rooms = imported_rooms(path.read_text(encoding="utf-8"), own if path.name == "__init__.py" else own[:-1])
    if not own:
        assert not rooms
        return
    assert own[0] in FLOOR, f"{own[0]} has no floor yet"
    upward = {room for room in rooms - {own[0]} if FLOOR.get(room, len(FLOORS)) >= FLOOR[own[0]]}
    assert not upward


def test_every_room_is_there():
    assert {parts(path)[0] for path in FILES if parts(path)} <= FLOOR.keys()
    assert sum(bool(imported_rooms(path.read_text(encoding="utf-8"), parts(path)[:-1])) for path in FILES) > 10


def test_files_are_short():
    long = {str(path): length for path in FILES if (length := len(path.read_text(encoding="utf-8").splitlines())) > 350}
    assert not long


def test_templates_are_packaged():
    from fc_lightning.chat_template.template import Render

    folder = files("fc_lightning") / "templates"
    chat = [folder / f"gemma_{render}.jinja" for render in get_args(Render)]
    chat.append(folder / "turns_canonical.jinja")
    assert {path.name for path in folder.iterdir()} == {
        "page.html.jinja",
        "macros.jinja",
        *(path.name for path in chat),
    }
    assert all("endgeneration" in path.read_text(encoding="utf-8") for path in chat)
