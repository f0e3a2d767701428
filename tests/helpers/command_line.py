"""The parser of the command line, without running anything."""

import functools
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from fc_lightning.cli.lightning_cli import make_parser


@functools.cache
def parser() -> LightningArgumentParser:
    """Made once in a test session: making it is what takes time."""
    return make_parser()


def parsed(subcommand: str, *arguments: str) -> Any:
    """The configuration of a command line; the recipe's name is not part of it. See :func:`parser`."""
    return parser().parse_args([subcommand, *arguments])[subcommand]
