"""The short help: keys and their docstrings read from the source files, so that nothing heavy is imported for it.

Importing torch, Lightning, transformers and PEFT takes several seconds; who asks for help should not wait for them.
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
_COLUMN = 26  # where the explanations begin

# For each subcommand what it does, and an example that runs as it stands behind the name of the program.
SUBCOMMANDS = {
    "fit": (
        "Train, measure the calls that the model generates, and write a folder for the run.",
        "fit --config configs/quickstart.yaml",
    ),
    "validate": (
        "Measure a checkpoint on `data.validation`, or without one the untouched base.",
        "validate --config configs/quickstart.yaml",
    ),
    "test": (
        "Measure a checkpoint on `data.test`, or without one the untouched base; writes predictions.jsonl.",
        "test --config configs/quickstart.yaml --ckpt_path best",
    ),
    "predict": (
        "Generate for `data.test`, for a file of prompts, or for one question; writes predictions.jsonl.",
        "predict --config configs/quickstart.yaml --question 'Weather in Oslo?' --tools tools.json",
    ),
    "chat": (
        "Try a model in the terminal and play its tools yourself.",
        "chat --config configs/quickstart.yaml --tools tools.json --ckpt_path best",
    ),
    "export": (
        "Merge a checkpoint and write a folder that any server opens.",
        "export --config configs/quickstart.yaml --ckpt_path best --output exported",
    ),
    "report": (
        "Put runs side by side, as HTML and Markdown.",
        "report --config configs/quickstart.yaml --runs '[runs/quickstart/version_0]'",
    ),
    "audit": (
        "Read the data as training would, check it, and show what the model will see.",
        "audit --config configs/quickstart.yaml",
    ),
    "think": (
        "Have another model write the missing reasoning into a data file.",
        "think --config configs/quickstart.yaml --base_url URL --teacher NAME --output thoughts.jsonl",
    ),
    "init": (
        "Copy the recipes and the quickstart's data into a folder, to start from.",
        "init my_project",
    ),
}
# Of Lightning's Trainer, what one sets most often; `--help all` has the rest.
TRAINER = {
    "max_epochs": "How often the data is seen.",
    "max_steps": "How many optimizer steps are taken at most; -1 for as many as the epochs have.",
    "accelerator": "`auto`, `cpu`, `gpu`, or another of Lightning's.",
    "devices": "How many of them, or which.",
    "num_nodes": "How many machines.",
    "strategy": "`auto`, `ddp`, or a class, see configs/trainer.",
    "precision": "`bf16-mixed` keeps a frozen base in half precision and trains the adapter in full.",
    "accumulate_grad_batches": "Micro-batches of an optimizer step.",
    "gradient_clip_val": "Largest norm of the gradients.",
    "val_check_interval": "Share of an epoch, or number of batches, between two validations.",
    "num_sanity_val_steps": "-1 measures the untouched base before training.",
    "limit_val_batches": "Validate on so many batches only.",
    "log_every_n_steps": "Optimizer steps between two logged values.",
    "logger": "Where values are logged, a class; its folder is the run's.",
    "callbacks": "A list of classes; `callbacks+` in a file appends to those before it.",
}
_CHECKPOINT = {
    "fit": "A checkpoint file; `last` goes on from the newest one of this configuration.",
    "validate": "A checkpoint file, or `best` or `last` of the newest run; the untouched base if not given.",
}
_CHECKPOINT["test"] = _CHECKPOINT["validate"]


@dataclass(frozen=True)
class Key:
    """A key of the configuration.

    Attributes:
        name: As it is written on the command line, without dashes.
        type: Its type, as the source has it; empty if it is not known here.
        default: As the source has it; None if the key must be given.
        text: What it means.
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
    """The keys of a subcommand by group, those of the subcommand itself under its name."""
    if subcommand == "init":
        return {}
    own = _arguments("cli/lightning_cli.py", "FunctionCallingTrainer", subcommand, ("model", "datamodule"))
    if subcommand in _CHECKPOINT:
        own = [Key("ckpt_path", "str | None", "None", _CHECKPOINT[subcommand])]
    linked = ("base", "revision", "special_tokens", "supervise")  # given once, under model
    return {
        subcommand: own,
        "model": _arguments("training/module.py", "FunctionCallingModule", prefix="model."),
        "data": _arguments("data/datamodule.py", "FunctionCallingDataModule", skip=linked, prefix="data."),
        "trainer": [Key(f"trainer.{name}", "", "", text) for name, text in TRAINER.items()],
    }


def help_for(arguments: Sequence[str], program: str, width: int = 100) -> str | None:
    """The help that is asked for.

    Args:
        arguments: Of the command line.
        program: How it was called.
        width: Columns of the text.

    Returns:
        The text; None if no help is asked for, or all of it: that is the full parser's.
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
    """The known word that a mistyped one was meant to be; None if there is none like it."""
    return next(iter(difflib.get_close_matches(word, known, 1, cutoff)), None)


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
            f"  {program} SUBCOMMAND --help           its keys",
            f"  {program} SUBCOMMAND --help KEY       all about one of them",
            f"  {program} SUBCOMMAND --help all       every key of Lightning's too",
            f"  {program} SUBCOMMAND --print_config   the configuration as it would be used",
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
        heading = {name: f"{name} itself", "trainer": "trainer, the most used"}.get(group, group)
        lines += [f"{heading}:", *_table(shown, width), ""] if shown else []
    return "\n".join(
        [
            *lines,
            "--help KEY tells all about a key, --help all lists those of Lightning too, --print_config shows what",
            "would be used; --trainer.callbacks.help=CLASS and --model.peft.help=CLASS list a class's arguments.",
        ]
    )


def _topic(subcommand: str, topic: str, width: int) -> str:
    known = {key.name: key for members in keys(subcommand).values() for key in members}
    found = [key for name, key in known.items() if name == topic or name.startswith(f"{topic}.")]
    if not found:
        meant = nearest(topic, list(known), 0.0)
        return f"{topic}: no key of that name here; did you mean {meant}? `--help all` lists every key"
    lines = []
    for key in found:
        given = "must be given" if key.default is None else f"default {key.default}"
        facts = f"  ({key.type}, {given})" if key.type else ""
        lines += [f"--{key.name}{facts}", *_wrapped(key.text, width, "  "), ""]
    return "\n".join(lines[:-1])


def _default(key: Key) -> str:
    if key.default is None:
        return " Must be given."
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


def _arguments(file: str, name: str, method: str = "__init__", skip: Sequence[str] = (), prefix: str = "") -> list[Key]:
    """The arguments of a method, with what the docstring says of them; a constructor's stand in its class's."""
    tree = ast.parse((_SOURCE / file).read_text(encoding="utf-8"))
    owner = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    methods = [node for node in owner.body if isinstance(node, ast.FunctionDef) and node.name == method]
    if not methods:
        return []
    documented = owner if method == "__init__" else methods[0]
    texts = {one.arg_name: one.description for one in google.parse(ast.get_docstring(documented) or "").params}
    given = methods[0].args
    defaults = [None] * (len(given.args) - len(given.defaults)) + [ast.unparse(node) for node in given.defaults]
    out = []
    for argument, default in zip(given.args, defaults, strict=True):
        if argument.arg == "self" or argument.arg in skip:
            continue
        kind = ast.unparse(argument.annotation) if argument.annotation else ""
        text = " ".join((texts.get(argument.arg) or "").replace("``", "`").split())
        if default and default.isidentifier() and default.isupper():
            default = _constant(default)
        out.append(Key(prefix + argument.arg, kind, default and default.strip("'"), text))
    return out


def _constant(name: str) -> str:
    """The value of a constant of the package."""
    sources = (path.read_text(encoding="utf-8") for path in _SOURCE.rglob("*.py"))
    return next(match[1] for text in sources if (match := re.search(rf"^{name} = (\S+)", text, re.MULTILINE)))
