"""Modules and data modules of the user's own: ``model.class_path`` and ``data.class_path``.

The parser is made for these classes, so that their settings are keys like all others: ``model.KEY``. As in LightningCLI
they may also be given under ``init_args``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from fc_lightning.cli.errors import ConfigurationError
from fc_lightning.utils.errors import first_line

GROUPS = ("model", "data")


def load_class(group: str, base: type, files: Sequence[str], arguments: Sequence[str]) -> type:
    """The class that a configuration names for a group, or else the base.

    Args:
        group: ``model`` or ``data``.
        base: What the class must be derived from.
        files: The configuration files.
        arguments: The command line, which comes last.

    Raises:
        ConfigurationError: If there is no such class, or it is derived from something else.
    """
    path = _class_path(group, files, arguments)
    if path is None:
        return base
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"{group}.class_path: {path} cannot be imported: {first_line(error)}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigurationError(f"{group}.class_path: {path} is not a subclass of fc_lightning.{base.__name__}")
    return found


def _class_path(group: str, files: Sequence[str], arguments: Sequence[str]) -> str | None:
    flag = f"--{group}.class_path"
    given = [os.environ.get(f"FC_{argument.upper()}__{group.upper()}__CLASS_PATH") for argument in arguments[:1]]
    given += [_read(file).get(group, {}).get("class_path") for file in files]
    for argument, following in zip(arguments, [*arguments[1:], None], strict=False):
        name, equals, value = argument.partition("=")
        given += [value if equals else following] if name == flag else []
    return next((path for path in reversed(given) if isinstance(path, str)), None)


def _read(file: str) -> dict[str, dict[str, Any]]:
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # the parser reports it
    groups = content.items() if isinstance(content, dict) else ()
    return {name: settings for name, settings in groups if isinstance(settings, dict)}


def flatten_init_args(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """A loader of YAML in which the settings under ``init_args`` of model and data are directly under the group."""

    def load_flat(text: str) -> Any:
        value = load(text)
        for group in GROUPS if isinstance(value, dict) else ():
            settings = value.get(group)
            if isinstance(settings, dict) and isinstance(settings.get("init_args"), dict):
                value[group] = {**settings, **settings["init_args"]}
                del value[group]["init_args"]
        return value

    return load_flat
