"""Writes configs/schema.json: what editors know of a configuration's keys, from the parser of `fit` itself.

python scripts/make_schema.py [FILE]

Each YAML file names it in a comment, `# yaml-language-server: $schema=…`; editors with a YAML language server then
complete keys and mark mistyped ones.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from jsonargparse import _completions_jsonschema as completions

import fc_lightning.callbacks
import fc_lightning.training.loggers  # noqa: F401 - so that its classes are known
from fc_lightning.cli.lightning_cli import FunctionCallingCLI

ROOT = Path(__file__).parent.parent
# Of these all classes are listed. jsonargparse would list every module and every metric that is imported, too.
_LISTED = {"Callback", "Logger", "Strategy", "PeftConfig"}
_LIBRARIES = r"^(lightning|fc_lightning|peft)\."  # so begin the paths of classes that are listed
# Adapters whose arguments are written out; the others are there by name.
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
        "description": "Arguments of a class that a file before this one names.",
        "type": "object",
        "properties": {"init_args": _ARGUMENTS},
        "required": ["init_args"],
        "additionalProperties": False,
    },
]


class _Parsers(FunctionCallingCLI):
    """Makes the parsers and parses nothing."""

    def parse_arguments(self, parser: Any, args: Any) -> None:
        raise StopIteration


def make_schema() -> dict[str, Any]:
    """The JSON schema of a configuration for ``fit``."""
    every = completions.get_all_subclass_paths
    completions.get_all_subclass_paths = lambda one: sorted(every(one)) if one.__name__ in _LISTED else []
    cli = _Parsers.__new__(_Parsers)
    try:
        cli.__init__([])
    except StopIteration:
        schema = json.loads(cli._subcommand_parsers["fit"].get_completion_script("jsonschema"))
    schema["description"] = "A configuration of fc-lightning, or an overlay on one."
    keys = schema["properties"]
    keys |= dict.fromkeys(("optimizer", "lr_scheduler"), _ARGUMENTS)  # the module brings its own
    trainer = keys["trainer"]["properties"]
    trainer["callbacks+"] = {**trainer["callbacks"], "description": "Callbacks behind those of the files before."}
    for definition in schema["$defs"].values():
        if "anyOf" in definition:
            definition["anyOf"] = _classes(definition["anyOf"])
    return _reachable(_plain(schema))


def _classes(options: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A choice of classes, those of the user's own among them."""
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
    """Without what depends on the machine: objects written with their address."""
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


def main() -> None:
    """Write the file."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "configs" / "schema.json"
    del sys.argv[1:]
    file.write_text(json.dumps(make_schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(file)


if __name__ == "__main__":
    main()
