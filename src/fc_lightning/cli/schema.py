"""A JSON schema of configuration files, made from the parser of ``fit``.

The first line of each YAML file names it, ``# yaml-language-server: $schema=…``; editors with a YAML language server
then complete keys and mark mistyped ones. `make install` and `fc-lightning init` write it.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import fc_lightning.callbacks
import fc_lightning.training.loggers  # noqa: F401 - so that its classes are known
from fc_lightning.cli.jsonargparse_internals import listed_subclasses
from fc_lightning.cli.lightning_cli import make_parser

_LISTED = {"Callback", "Logger", "Strategy", "PeftConfig"}  # base classes whose subclasses are all listed
_LIBRARIES = r"^(lightning|fc_lightning|peft)\."  # paths of listed classes start with these
_ARGUMENTS = {"type": "object"}
_FURTHER = [
    {
        "description": "A class of your own.",
        "type": "object",
        "properties": {
            "class_path": {"type": "string", "not": {"pattern": _LIBRARIES}},
            "init_args": _ARGUMENTS,
        },
        "required": ["class_path"],
        "additionalProperties": False,
    },
    {
        "description": "Arguments of a class that an earlier file names.",
        "type": "object",
        "properties": {"init_args": _ARGUMENTS},
        "required": ["init_args"],
        "additionalProperties": False,
    },
]


def write_schema(file: Path) -> None:
    """Write the schema of a configuration for ``fit``."""
    file.write_text(json.dumps(make_schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def make_schema() -> dict[str, Any]:
    """The JSON schema of a configuration for ``fit``."""
    arguments, sys.argv = sys.argv, sys.argv[:1]  # jsonargparse reads them when it writes the schema
    try:
        with listed_subclasses(_LISTED):
            schema = json.loads(make_parser("fit").get_completion_script("jsonschema"))
    finally:
        sys.argv = arguments
    schema["description"] = "A configuration of fc-lightning, or an overlay on one."
    keys = schema["properties"]
    keys |= dict.fromkeys(("optimizer", "lr_scheduler"), _ARGUMENTS)
    trainer = keys["trainer"]["properties"]
    trainer["callbacks+"] = {**trainer["callbacks"], "description": "Callbacks after those of the earlier files."}
    for definition in schema["$defs"].values():
        if "anyOf" in definition:
            definition["anyOf"] = _classes(definition["anyOf"])
    return schema


def _classes(options: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A choice of classes, the user's own among them."""
    paths = [option.get("properties", {}).get("class_path", {}).get("const") for option in options]
    if not any(paths):
        return options
    of_libraries = [one for one, path in zip(options, paths, strict=True) if not path or re.match(_LIBRARIES, path)]
    return [*of_libraries, *_FURTHER]


if __name__ == "__main__":
    write_schema(Path(sys.argv[1]))
