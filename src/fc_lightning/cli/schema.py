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
# Adapters whose arguments are written out; the others are listed by name.
_ADAPTERS = {f"peft.{name}Config" for name in ("Lora", "AdaLora", "IA3", "LoHa", "LoKr", "OFT", "BOFT", "Vera", "HRA")}
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
    return _reachable(_plain(schema))


def _classes(options: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A choice of classes, the user's own among them."""
    paths = [path for path in map(_path, options) if path]
    if not paths:
        return options
    full = [one for one in options if not _path(one).startswith("peft.") or _path(one) in _ADAPTERS]
    full = [one for one in full if not _path(one) or re.match(_LIBRARIES, _path(one))]
    names = [path for path in paths if path.startswith("peft.") and path not in _ADAPTERS]
    by_name = {"properties": {"class_path": {"enum": names}, "init_args": _ARGUMENTS}, "additionalProperties": False}
    return [*full, *([{"type": "object", **by_name, "required": ["class_path"]}] if names else []), *_FURTHER]


def _path(option: dict[str, Any]) -> str:
    return str(option.get("properties", {}).get("class_path", {}).get("const", ""))


def _plain(value: Any) -> Any:
    """Without default values that contain an object's address: they differ with each process."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if " at 0x" not in str(item) or key != "default"}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _reachable(schema: dict[str, Any]) -> dict[str, Any]:
    """Without definitions that nothing refers to any more."""
    definitions, wanted, pending = schema.pop("$defs"), set(), [schema]
    while pending:
        for name in re.findall(r'"#/\$defs/([^"]+)"', json.dumps(pending.pop())):
            if name not in wanted:
                wanted.add(name)
                pending.append(definitions[name])
    return {**schema, "$defs": {name: definitions[name] for name in sorted(wanted)}}


if __name__ == "__main__":
    write_schema(Path(sys.argv[1]))
