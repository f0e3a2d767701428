"""Rewords configuration errors as one line: what is wrong, in which file and line, and what was probably meant.

jsonargparse lists every type that it tried. This module extracts the one thing that the user can fix. Any exception,
these included, becomes a one-line error or a traceback in `exit_on_error` (`training/distributed.py`).
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from fc_lightning.cli.help import did_you_mean, nearest
from fc_lightning.utils.errors import UserError
from fc_lightning.utils.escaping import shorten

# Modules in which a class named without its module is looked for.
_CLASSES = (
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.strategies",
    "fc_lightning.callbacks",
    "peft",
    "torch.optim",
)
_TYPES = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
}


class ConfigurationError(UserError):
    """The configuration is not possible. The message says what to do."""


def explain(message: str, known: Sequence[str], files: Sequence[str] = ()) -> str:
    """One line for a message of jsonargparse.

    Args:
        message: The message.
        known: All valid keys.
        files: The configuration files that were read, in order.
    """
    if inner := _inner_message(message):
        return f"{inner[0]}.{explain(inner[1], known, files)}"
    patterns: list[tuple[str, Callable[..., str]]] = [
        (r"unrecognized arguments: (?:--)?([^\s=]+)", lambda key: _unknown_key(key, known, files)),
        (r"Subcommand '.*?' does not accept option '(.*?)'", lambda key: _unknown_key(key, known, files)),
        (r"Group '(.*?)' does not accept option '(.*?)'", lambda a, b: _unknown_key(f"{a}.{b}", known, files)),
        (r"^Option '(.*?)' is not accepted", lambda key: _unknown_key(key, known, files)),
        (r"arguments are required: (.*)", lambda keys: f"--{keys.split('.', 1)[-1]} must be given"),
        (r"File does not exist: '(.*)'", _missing_file),
        (r"Problems parsing config", lambda: _broken_file(message, files)),
        (
            r"(?s)key \"(.*?)\":.*?Problem with given class_path '(.*?)':\s*(.*?)\s*\n",
            lambda key, path, reason: _class(key, path, reason, files),
        ),
        (r"(?s)key \"(.*?)\":.*?Import path (\S+) does not correspond to a subclass of (\w+)", _no_subclass),
        (r"(?s)key \"(.*?)\":.*?Expected a dot import path string: (\S+)", _short_name),
        (r"(?s)key \"(.*?)\":(?!.*Union).*Expected a typing.Literal\[(.*?)\]. Got value: (.*)", _choice),
        (r"(?s)key \"(.*?)\":(?!.*Union).*Expected a <class '(\w+)'>. Got value: (.*)", _type),
        (r"(?s)key \"(.*?)\":.*?Errors:\s*- (.*)\n.*?Given value: (.*)", _union),
    ]
    for pattern, tell in patterns:
        if match := re.search(pattern, message):
            return _line(tell(*match.groups()))
    return _line(message)


def _inner_message(message: str) -> tuple[str, str] | None:
    """The class, as ``model.peft: LoraConfig``, and the message about its argument, if that is what is wrong."""
    match = re.search(r"""(?s)key "(.*?)":.*?Problem with given class_path '(.*?)':\n( +)(Parser key ".*)""", message)
    if match is None:
        return None
    key, path, indent, rest = match.groups()
    first, *others = rest.splitlines()
    lines = itertools.takewhile(lambda line: line.startswith(indent), others)
    return f"{key}: {path.rpartition('.')[2]}", "\n".join([first, *lines])


def explain_trainer(error: Exception) -> str:
    """One line for an error that Lightning's Trainer, or a class given to it, raises about its arguments."""
    text = str(error)
    if match := re.search(r"Errors:\s+- (?:Problem with given class_path '(.*)':\s+)?(.*)", text):
        text = ": ".join(filter(None, match.groups()))  # the class's own message
    if match := re.search(r"invalid (strategy|accelerator) name: `\w+='(.*?)'`", text):
        kind, given = match.groups()
        names = StrategyRegistry if kind == "strategy" else AcceleratorRegistry
        return f"trainer.{kind}: unknown {kind} {given}{did_you_mean(given, ['auto', *names])}"
    if match := re.search(r"(?i)(?:no module|module not found|needs|requirement).*?\b(wandb|mlflow|trackio)\b", text):
        return f'trainer.callbacks: {match[1]} is not installed: pip install "fc-lightning[{match[1]}]"'
    if "No supported gpu backend" in text:
        return "trainer.accelerator: torch finds no GPU; to train without one, add `--config configs/trainer/cpu.yaml`"
    return _line(f"`trainer`: {text}")


def _unknown_key(key: str, known: Sequence[str], files: Sequence[str]) -> str:
    if key.partition(".")[0] in ("fit", "validate", "test", "predict") and len(key.split(".")) > 2:
        return f"{key}: config files are shared by all subcommands; remove the `{key.partition('.')[0]}:` level"
    place = _place_of_key(key.split("."), files)
    last = {name.rpartition(".")[2]: name for name in known}
    # Usually one part is mistyped; sometimes the key is in the wrong group.
    meant = nearest(key, known, 0.75) or last.get(nearest(key.rpartition(".")[2], list(last), 0.8) or "")
    return f"{place}unknown key {key}" + (f"; did you mean {meant}?" if meant else "; `--help all` lists them")


def _class(key: str, path: str, reason: str, files: Sequence[str]) -> str:
    """The error in a class that is given by its import path."""
    module, _, name = path.rpartition(".")
    if match := re.search(r"module '(.*?)' has no attribute '(.*?)'", reason):
        names = [one for one in dir(importlib.import_module(match[1])) if not one.startswith("_")]
        meant = nearest(match[2], names)
        hint = f"; did you mean {match[1]}.{meant}?" if meant else f" in {match[1]}"
        return f"{_place(path, files)}{key}: unknown class {path}{hint}"
    if match := re.search(r"Option '(.*?)' is not accepted", reason):
        owner = getattr(importlib.import_module(module), name)
        arguments = list(inspect.signature(owner).parameters)
        hint = did_you_mean(match[1], arguments, f"; --{key}.help={path} lists its arguments", 0.5)
        return f"{_place(match[1], files)}{key}: {name} has no argument {match[1]}{hint}"
    if match := re.search(r"No module named '(.*?)'", reason):
        return f"{_place(path, files)}{key}: {path}: no module {match[1]} in this folder or on the PYTHONPATH"
    return f"{_place(path, files)}{key}: {path}: {reason}"


def _no_subclass(key: str, path: str, base: str) -> str:
    return f"{key}: {path} is not a {base}"


def _short_name(key: str, name: str) -> str:
    """A class that is named without its module, which works for classes of Lightning and of this package."""
    modules = [sys.modules[one] for one in _CLASSES if one in sys.modules]
    paths = {one: f"{module.__name__}.{one}" for module in modules for one in dir(module) if one[0].isupper()}
    meant = nearest(name, list(paths))
    return f"{key}: unknown class {name}; " + (f"did you mean {paths[meant]}?" if meant else "include its module")


def _choice(key: str, choices: str, value: str) -> str:
    names = re.findall(r"'(.*?)'", choices)
    return f"{key}: {value} is not one of {', '.join(names)}{did_you_mean(value, names, cutoff=0.5)}"


def _type(key: str, kind: str, value: str) -> str:
    return f"{key}: {value} is not {_TYPES.get(kind, kind)}"


def _union(key: str, errors: str, value: str) -> str:
    """A value that is none of several types."""
    if choices := re.findall(r"Expected a typing.Literal\[(.*?)\]", errors):
        return _choice(key, ", ".join(choices), value)
    kinds = [_TYPES.get(kind, kind) for kind in re.findall(r"Expected a <class '(\w+)'>", errors) if kind != "NoneType"]
    return f"{key}: {value} is not {' or '.join(dict.fromkeys(kinds))}" if kinds else f"{key}: {errors}, not {value}"


def _missing_file(path: str) -> str:
    there = [str(file) for file in Path("configs").rglob("*.yaml")]
    shown = str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else path
    return f"{shown}: configuration file not found{did_you_mean(shown, there)}"


def _broken_file(message: str, files: Sequence[str]) -> str:
    """The place in a file where it is not valid YAML."""
    for file in files:
        try:
            yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            return (
                f"{file}{f', line {mark.line + 1}' if mark else ''}: invalid YAML: {getattr(error, 'problem', error)}"
            )
    return message


def _place_of_key(parts: Sequence[str], files: Sequence[str]) -> str:
    """The file and line of a key, as the beginning of a message; empty if it came from the command line."""
    for file in reversed(files):
        node = yaml.compose(Path(file).read_text(encoding="utf-8")) if Path(file).is_file() else None
        line = None
        for part in parts:
            entries = node.value if isinstance(node, yaml.MappingNode) else []
            line, node = next(((k.start_mark.line + 1, v) for k, v in entries if k.value == part), (None, None))
        if line is not None:
            return f"{file}, line {line}: "
    return ""


def _place(word: str, files: Sequence[str]) -> str:
    """The same for a word, such as a class or an argument, anywhere in a file."""
    for file in reversed(files):
        path = Path(file)
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for number, line in enumerate(lines, 1):
            if re.search(rf"(?<![\w.]){re.escape(word)}(?![\w.])", line.partition("#")[0]):
                return f"{file}, line {number}: "
    return ""


def _line(text: str, limit: int = 400) -> str:
    """The text on one line."""
    return shorten(" ".join(text.split()), limit)
