"""``init``: copies the recipes and the quickstart's data to a folder. It imports nothing heavy."""

from __future__ import annotations

import shutil
from pathlib import Path

from fc_lightning.utils.errors import UserError

_PACKAGE = Path(__file__).parents[1]
_COPIED = ("configs", "data/quickstart")


class InitError(UserError):
    """The folder cannot be filled. The message says why."""


def init(folder: Path) -> None:
    """Copy the recipes and the quickstart's data; never overwrites files.

    Raises:
        InitError: If the folder already has some of it, or cannot be written.
    """
    for name in _COPIED:
        if (folder / name).exists():
            raise InitError(f"{folder / name}: already exists; choose another folder")
    # A wheel has them inside of the package, a checkout next to it.
    source = _PACKAGE / "recipes" if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent.parent
    for name in _COPIED:
        ignored = shutil.ignore_patterns("debug", "schema.json", "__pycache__")
        try:
            shutil.copytree(source / name, folder / name, ignore=ignored)
        except OSError as error:
            raise InitError(f"{folder / name}: could not be written: {error.strerror or error}") from error
