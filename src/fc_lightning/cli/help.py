"""The short help: keys and docstrings are parsed from the source files, without importing them.

Importing torch, Lightning, transformers and PEFT takes several seconds; help is printed immediately.
"""

from __future__ import annotations

import ast
import difflib
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from docstring_parser import google

_SOURCE = Path(__file__).parents[1]
SOURCES = ("data.train", "data.validation", "data.test")  # keys of lists of sources
# Keys with keys of their own: the file and the class that document them.
_GROUPS = {
    "data.augmentation": ("data/augmentation.py", "Augmentation"),
    "model.preference": ("models/preference_loss.py", "Preference"),
    "model.token_weights": ("chat_template/token_parts.py", "TokenWeights"),
}
_COLUMN = 26  # where the descriptions begin

# For each subcommand its description, and example arguments.
SUBCOMMANDS = {
    "fit": (
        "Train, evaluate the calls that the model generates, and write a run folder.",
        "fit --config configs/quickstart.yaml",
    ),
    "validate": (
        "Evaluate a checkpoint, or the base model, on `data.validation`.",
        "validate --config configs/quickstart.yaml",
    ),
    "test": (
        "Evaluate a checkpoint, or the base model, on `data.test`; writes predictions.jsonl.",
        "test --config configs/quickstart.yaml --ckpt_path best",
    ),
    "predict": (
        "Generate model turns for `data.test`, a file of prompts, or one question; writes predictions.jsonl.",
        "predict --config configs/quickstart.yaml --question 'Weather in Oslo?' --tools tools.json",
    ),
    "chat": (
        "Chat with a model in the terminal; you type the responses of its tools.",
        "chat --config configs/quickstart.yaml --tools tools.json --ckpt_path best",
    ),
    "export": (
        "Merge a checkpoint and write a folder that any server can load.",
        "export --config configs/quickstart.yaml --ckpt_path best --output exported",
    ),
    "report": (
        "Compare runs side by side, as HTML and Markdown.",
        "report --config configs/quickstart.yaml --runs '[runs/quickstart/version_0]'",
    ),
    "audit": (
        "Read the data as training would, check it, and show what the model will see.",
        "audit --config configs/quickstart.yaml",
    ),
    "mine": (
        "Sample a model's turns on `data.train`, and write its mistakes to pairs.jsonl.",
        "mine --config configs/quickstart.yaml --ckpt_path best",
    ),
    "think": (
        "Have a teacher model write missing reasoning, and save it to a data file.",
        "think --config configs/quickstart.yaml --base_url URL --teacher NAME --output thoughts.jsonl",
    ),
    "init": (
        "Copy the recipes and the quickstart's data into a new folder.",
        "init my_project",
    ),
}
# The most common settings of Lightning's Trainer; `--help all` has the others.
TRAINER = {
    "max_epochs": "Number of passes over the data.",
    "max_steps": "Maximum number of optimizer steps; -1 for no limit.",
    "accelerator": "`auto`, `cpu`, `gpu`, or another Lightning accelerator.",
    "devices": "Number of devices, or a list of IDs.",
    "num_nodes": "Number of machines.",
    "strategy": "`auto`, `ddp`, or a class; see configs/trainer.",
    "precision": "`bf16-mixed` keeps a frozen base in bfloat16 and trains the adapter in float32.",
    "accumulate_grad_batches": "Micro-batches per optimizer step.",
    "gradient_clip_val": "Maximum norm of the gradients.",
    "val_check_interval": "Fraction of an epoch, or number of batches, between validations.",
    "num_sanity_val_steps": "-1 evaluates the base model before training.",
    "limit_val_batches": "Number of batches to validate on.",
    "log_every_n_steps": "Optimizer steps between log entries.",
    "logger": "The logger class; its folder becomes the run folder.",
    "callbacks": "A list of classes that replaces the default list; `callbacks+` in a file appends to it.",
}
# Files of the functions behind the subcommands; each function is named after its subcommand.
_FUNCTIONS = {
    **dict.fromkeys(("fit", "validate", "test"), "cli/lightning_cli.py"),
    "predict": "commands/predict.py",
    "chat": "commands/chat.py",
    "export": "commands/export/__init__.py",
    "report": "commands/report.py",
    "audit": "commands/audit/__init__.py",
    "mine": "commands/mine.py",
    "think": "commands/distill.py",
}


@dataclass(frozen=True)
class Key:
    """A key of the configuration.

    Attributes:
        name: Its name on the command line, without dashes.
        type: Its type as written in the source; empty if unknown.
        default: Its default as written in the source; None if the key is required.
        text: Its description.
    """

    name: str
    type: str
    default: str | None
    text: str

    @property
    def short(self) -> str:
        """The first sentence."""
        return self.text.split(". ", 1)[0].rstrip(".:") + "."


def keys(subcommand: str) -> dict[str, list[Key]]:
    """The keys of a subcommand by group; the options of the subcommand itself are under its name."""
    if subcommand == "init":
        return {}
    # Given under `model`
    shared = ("base", "revision", "tool_format", "special_tokens", "supervise", "token_weights", "pairs")
    return {
        subcommand: _parameters(_FUNCTIONS[subcommand], subcommand, ("trainer", "model", "datamodule")),
        "model": [_own_class("model"), *_parameters("training/module.py", "FunctionCallingModule", prefix="model.")],
        "data": [
            _own_class("data"),
            *_parameters("data/datamodule.py", "FunctionCallingDataModule", shared, "data."),
        ],
        "trainer": [Key(f"trainer.{name}", "", "", text) for name, text in TRAINER.items()],
    }


def _own_class(group: str) -> Key:
    text = "Your own subclass of this package's class; its settings are keys of this group too."
    return Key(f"{group}.class_path", "str | None", "None", text)


def help_for(arguments: Sequence[str], program: str, width: int = 100) -> str | None:
    """The requested help.

    Args:
        arguments: The arguments of the command line.
        program: The name of the program.
        width: Columns of the text.

    Returns:
        The text; None if no help is requested, or `--help all`, which the full parser prints.
    """
    place = next((n for n, one in enumerate(arguments) if one.split("=")[0] in ("-h", "--help")), None)
    subcommand = next((one for one in arguments if one in SUBCOMMANDS), None)
    if place is None and arguments:
        return None
    if subcommand is None:
        return _overview(program, width)
    _, _, topic = arguments[place or 0].partition("=")
    topic = topic or next(iter(arguments[(place or 0) + 1 :]), "")
    if topic == "all" and subcommand != "init":
        return None
    if topic and topic not in SUBCOMMANDS and not topic.startswith("-"):
        return _topic(subcommand, topic.strip("-"), width)
    return _subcommand(subcommand, program, width)


def nearest(word: str, known: Sequence[str], cutoff: float = 0.6) -> str | None:
    """The known word that is most similar to a mistyped one; None if there is none."""
    return next(iter(difflib.get_close_matches(word, known, 1, cutoff)), None)


def did_you_mean(word: str, known: Sequence[str], otherwise: str = "", cutoff: float = 0.6) -> str:
    """The end of a message about a mistyped word: the most similar one, or other text if there is none."""
    meant = nearest(word, known, cutoff)
    return f"; did you mean {meant}?" if meant else otherwise


def _overview(program: str, width: int) -> str:
    rows = [(name, text) for name, (text, _) in SUBCOMMANDS.items()]
    return "\n".join(
        [
            f"usage: {program} SUBCOMMAND --config FILE [--config OVERLAY …] [--KEY VALUE …]",
            "",
            "Teaches an open language model to call functions, and measures how often its calls are exactly right.",
            "",
            *_table(rows, width, 12),
            "",
            "Start here:",
            f"  {program} fit --config configs/quickstart.yaml",
            "",
            f"  {program} SUBCOMMAND --help           keys of a subcommand",
            f"  {program} SUBCOMMAND --help KEY       full description of a key",
            f"  {program} SUBCOMMAND --help all       all keys, including those of Lightning",
            f"  {program} SUBCOMMAND --print_config   the complete configuration, without running it",
        ]
    )


def _subcommand(name: str, program: str, width: int) -> str:
    what, example = SUBCOMMANDS[name]
    if name == "init":
        return f"usage: {program} init FOLDER\n\n{what}\n\n  {program} {example}"
    lines = [f"usage: {program} {name} --config FILE [--config OVERLAY …] [--KEY VALUE …]", "", what, ""]
    lines += [f"  {program} {example}", ""]
    for group, members in keys(name).items():
        shown = [(f"--{key.name}", key.short + _default(key)) for key in members]
        heading = {name: f"options of {name}", "trainer": "trainer (most common keys)"}.get(group, group)
        lines += [f"{heading}:", *_table(shown, width), ""] if shown else []
    return "\n".join(
        [
            *lines,
            "--help KEY describes a key in full; --help all lists all keys, including those of Lightning;",
            "--print_config prints the complete configuration; --trainer.callbacks.help=CLASS and",
            "--model.peft.help=CLASS list the arguments of a class.",
        ]
    )


def _topic(subcommand: str, topic: str, width: int) -> str:
    known = {key.name: key for members in keys(subcommand).values() for key in members}
    found = [key for name, key in known.items() if name == topic or name.startswith(f"{topic}.")]
    if not found:
        meant = nearest(topic, list(known), 0.0)
        return f"{topic}: unknown key; did you mean {meant}? `--help all` lists all keys"
    lines = []
    for key in found:
        given = "required" if key.default is None else f"default {key.default}"
        facts = f"  ({key.type}, {given})" if key.type else ""
        lines += [f"--{key.name}{facts}", *_wrapped(key.text, width, "  "), ""]
    if topic in SOURCES:
        fields = _parameters("data/sources.py", "Source")
        lines += ["A source is a path, the ID of a dataset on the Hub, or a mapping:", *_table_of(fields, width), ""]
        lines += _wrapped(f"--{topic} rows.jsonl", width, "  ") + _wrapped(f"--{topic} a.jsonl b.jsonl", width, "  ")
        lines += [f"  --{topic} '[{{path: rows.jsonl, limit: 100}}]'", ""]
    if topic in _GROUPS:
        lines += ["Its keys:", *_table_of(_parameters(*_GROUPS[topic]), width), ""]
    return "\n".join(lines[:-1])


def _table_of(fields: Sequence[Key], width: int) -> Iterator[str]:
    return _table([(field.name, f"{field.text}{_default(field)}") for field in fields], width, 12)


def _default(key: Key) -> str:
    if key.default is None:
        return " Required."
    return "" if key.default in ("", "None") else f" [{key.default}]"


def _table(rows: Sequence[tuple[str, str]], width: int, column: int = _COLUMN) -> Iterator[str]:
    for name, text in rows:
        first, *rest = textwrap.wrap(text, width - column, break_long_words=False, break_on_hyphens=False)
        if len(name) + 3 > column:
            yield f"  {name}"
            yield " " * column + first
        else:
            yield f"  {name:<{column - 2}}{first}"
        yield from (" " * column + line for line in rest)


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False)


def _parameters(file: str, name: str, skip: Sequence[str] = (), prefix: str = "") -> list[Key]:
    """The parameters of a function, a class's constructor or a dataclass, with their descriptions in the docstring."""
    tree = ast.parse((_SOURCE / file).read_text(encoding="utf-8"))
    owner = next(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name)
    documented = google.parse(ast.get_docstring(owner) or "").params
    texts = {parameter.arg_name: parameter.description for parameter in documented}
    keys = []
    for argument, annotation, default in _signature(owner):
        if argument in skip:
            continue
        text = " ".join((texts.get(argument) or "").replace("``", "`").split())
        if default and default.isidentifier() and default.isupper():
            default = _constant(default)
        keys.append(Key(prefix + argument, annotation, default and default.strip("'"), text))
    return keys


def _signature(owner: ast.ClassDef | ast.FunctionDef) -> Iterator[tuple[str, str, str | None]]:
    """Name, type and default of each parameter, as written in the source; the default is None if there is none."""
    constructors = [n for n in owner.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    if isinstance(owner, ast.ClassDef) and not constructors:  # a dataclass
        for field in owner.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                default = ast.unparse(field.value) if field.value else None
                yield field.target.id, ast.unparse(field.annotation), default
        return
    given = (owner if isinstance(owner, ast.FunctionDef) else constructors[0]).args
    defaults = [None] * (len(given.args) - len(given.defaults)) + [ast.unparse(node) for node in given.defaults]
    for argument, default in zip(given.args, defaults, strict=True):
        if argument.arg != "self":
            yield argument.arg, ast.unparse(argument.annotation) if argument.annotation else "", default


def _constant(name: str) -> str:
    """The value of a constant of the package."""
    sources = (path.read_text(encoding="utf-8") for path in _SOURCE.rglob("*.py"))
    return next(match[1] for text in sources if (match := re.search(rf"^{name} = (\S+)", text, re.MULTILINE)))
