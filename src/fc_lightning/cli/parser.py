"""The parser of the command line: strict names, one-line errors, lists that replace, and paths as sources."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser

from fc_lightning.cli.errors import explain
from fc_lightning.cli.help import SOURCES
from fc_lightning.cli.jsonargparse_internals import prepare_values
from fc_lightning.cli.user_classes import GROUPS, flatten_init_args
from fc_lightning.utils.escaping import printable_text


class Parser(LightningArgumentParser):
    """Lightning's parser with one-line errors and without abbreviations.

    With abbreviations, a mistyped key that is the beginning of another one would silently set that one.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self.folder = Path.cwd()

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        """Parse arguments; several paths after a key of sources are one list, and flags of LightningCLI are known."""
        arguments = rename_flags(sys.argv[1:] if args is None else args)
        return super().parse_args(join_paths(arguments), *rest, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with one line and exit code 2."""
        if not self.exit_on_error:  # an internal parser of jsonargparse, for the arguments of a class
            super().error(message, ex)
        os.chdir(self.folder)  # jsonargparse changes into the folder of the file that it reads
        arguments = list(getattr(self, "args", None) or [])
        choices = getattr(self._subcommands_action, "choices", None) or {}
        chosen = next((choices[one] for one in arguments if one in choices), None)
        parser = getattr(ex, "subcommand_parser", None) or chosen or self
        known = [action.dest for action in parser._actions if action.dest not in ("help", "config")]
        print(printable_text(f"error: {explain(message, known, config_files(arguments))}"), file=sys.stderr)
        sys.exit(2)


def config_files(arguments: Sequence[str]) -> list[str]:
    """The configuration files of a command line."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=False)
    flags = ("--config", "-c")
    return [one.partition("=")[2] if "=" in one else after for one, after in pairs if one.partition("=")[0] in flags]


def rename_flags(arguments: Sequence[str]) -> list[str]:
    """Read flags of LightningCLI as ours: ``--optimizer NAME --optimizer.KEY VALUE``, and ``--model.init_args.KEY``."""
    renamed = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        key = flag.removeprefix("--").partition(".")[0]
        if flag.startswith("--") and key in ("optimizer", "lr_scheduler"):
            whole = flag == f"--{key}" and not value.startswith("{")
            flag = f"--model.{flag[2:]}" + (".class_path" if whole else "")
        elif key in GROUPS:
            flag = flag.replace(f"--{key}.init_args.", f"--{key}.", 1)
        renamed.append(flag + equals + value)
    return renamed


def join_paths(arguments: Sequence[str]) -> list[str]:
    """Make one YAML list of several paths after a key of sources, as in ``--data.train rows/*.jsonl``."""
    joined: list[str] = []
    values: list[str] = []
    for argument in [*arguments, "--"]:
        if values and argument.startswith("-"):
            joined.append(values[0] if len(values) == 1 else yaml.safe_dump(values, default_flow_style=True).strip())
            values = []
        in_sources = bool(joined) and joined[-1].removesuffix("+") in [f"--{key}" for key in SOURCES]
        (values if in_sources and not argument.startswith("-") else joined).append(argument)
    return joined[:-1]


def as_sources(value: Any) -> Any:
    """Turn a path, a mapping, or a list of them into a list of mappings; leave everything else alone."""
    if isinstance(value, str):
        try:
            loaded = yaml.safe_load(value)
        except yaml.YAMLError:
            return value  # jsonargparse reports it
        value = loaded if isinstance(loaded, list | dict | int | float) or loaded is None else value
    if isinstance(value, str | dict):
        value = [value]
    if isinstance(value, list):
        return [{"path": item} if isinstance(item, str) else item for item in value]
    return value


set_loader("yaml", flatten_init_args(get_loader("yaml")), exceptions=(yaml.YAMLError,))
# Defaults of classes may be members of an enum, which YAML cannot represent.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))
prepare_values(lambda key, value: as_sources(value) if key in SOURCES else value)
