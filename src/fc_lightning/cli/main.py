"""Where the program starts: what can be answered at once is, everything else goes to the full command line."""

from __future__ import annotations

import os
import re
import select
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import fc_lightning
from fc_lightning.cli.help import SUBCOMMANDS, help_for, nearest

_PACKAGE = Path(__file__).parents[1]


def main(args: Sequence[str] | None = None) -> None:
    """Answer a question for help, or run a subcommand.

    Args:
        args: Arguments instead of those of the process.
    """
    with _while_somebody_reads():
        _answer(args)


def _answer(args: Sequence[str] | None) -> None:
    arguments = sys.argv[1:] if args is None else list(args)
    program = Path(sys.argv[0]).name
    program = f"python {program}" if program.endswith(".py") else program
    text = help_for(arguments, program, min(shutil.get_terminal_size().columns, 120))
    if text is not None:
        print(text)
    elif arguments == ["--version"]:
        print(fc_lightning.__version__)
    elif arguments[0] == "init":
        init(arguments[1:])
    else:
        _check_subcommand(arguments[0])
        from fc_lightning.cli.lightning_cli import main as run  # takes seconds

        if args is None:  # Lightning starts other ranks by the process's own arguments
            sys.argv[1:] = _without_all(arguments)
        run(None if args is None else _without_all(arguments))


def init(arguments: Sequence[str]) -> None:
    """Copy the recipes and the quickstart's data into a folder.

    Args:
        arguments: The folder.
    """
    if len(arguments) != 1 or arguments[0].startswith("-"):
        _fail("init takes one folder: init FOLDER")
    folder = Path(arguments[0])
    for name in ("configs", "data/quickstart"):
        if (folder / name).exists():
            _fail(f"{folder / name}: exists already; choose another folder")
    # In a wheel they lie in the package; in a checkout they are where they are.
    source = _PACKAGE / "recipes" if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent.parent
    for name in ("configs", "data/quickstart"):
        shutil.copytree(source / name, folder / name, ignore=shutil.ignore_patterns("debug", "__pycache__"))
    print(f"{folder}\nnext:    cd {folder} && fc-lightning fit --config configs/quickstart.yaml")


@contextmanager
def _while_somebody_reads() -> Iterator[None]:
    """End as other programs do where nobody reads any further what is printed, as behind ``| head``: without a word."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        if not any(event & select.POLLERR for _, event in poll.poll(0)):
            raise  # it was another pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        sys.exit(141)  # as a shell shows SIGPIPE


def _without_all(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the full parser's plain `--help` in place of `--help all`."""
    text = "\0".join(arguments)
    return re.sub(r"(^|\0)(-h|--help)[\0=]all(?=\0|$)", r"\1\2", text).split("\0")


def _check_subcommand(word: str) -> None:
    """Tell a mistyped subcommand before seconds are spent on imports."""
    if word.startswith("-") or word in SUBCOMMANDS:
        return
    meant = nearest(word, list(SUBCOMMANDS))
    hint = f"did you mean {meant}?" if meant else f"there are {', '.join(SUBCOMMANDS)}"
    _fail(f"{word}: no such subcommand; {hint}")


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
