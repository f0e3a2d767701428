"""Entry point: answers what needs no heavy import, and passes everything else to `cli/lightning_cli.py`.

There, `exit_on_error` (`training/distributed.py`) turns exceptions into one-line errors.
"""

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
from fc_lightning.cli.help import SUBCOMMANDS, did_you_mean, help_for
from fc_lightning.cli.quiet import silence
from fc_lightning.commands.init import InitError, init
from fc_lightning.utils.malloc import restart_with_tunables

# What may be restarted: it does nothing before it calls `main`.
_PROGRAMS = ("main.py", "__main__.py", "fc-lightning")


def main(args: Sequence[str] | None = None) -> None:
    """Print help, or run a subcommand.

    Args:
        args: Arguments instead of those of the process.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        _fail("the working directory no longer exists; change to another one")
    with _exit_quietly_on_broken_pipe():
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
        _init(arguments[1:])
    else:
        _check_subcommand(arguments[0])
        if args is None and Path(sys.argv[0]).name in _PROGRAMS:
            restart_with_tunables()
        silence()
        from fc_lightning.cli.lightning_cli import main as run  # takes seconds

        if args is None:  # Lightning starts other ranks with the arguments of this process
            sys.argv[1:] = _without_all(arguments)
        run(None if args is None else _without_all(arguments))


def _init(arguments: Sequence[str]) -> None:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        _fail("init takes one folder: init FOLDER")
    folder = Path(arguments[0])
    try:
        init(folder)
    except InitError as error:
        _fail(str(error))
    silence()
    from fc_lightning.cli.schema import write_schema  # takes seconds

    write_schema(folder / "configs" / "schema.json")
    print(f"{folder}\nnext:    cd {folder} && fc-lightning fit --config configs/quickstart.yaml")


@contextmanager
def _exit_quietly_on_broken_pipe() -> Iterator[None]:
    """Exit without an error message if the reader of standard output has gone, as in ``| head``."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        if not any(event & select.POLLERR for _, event in poll.poll(0)):
            raise  # another pipe is broken
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
        sys.exit(141)  # the exit code that a shell gives to SIGPIPE


def _without_all(arguments: Sequence[str]) -> list[str]:
    """Replace `--help all` by `--help`, which the full parser understands."""
    text = "\0".join(arguments)
    return re.sub(r"(^|\0)(-h|--help)[\0=]all(?=\0|$)", r"\1\2", text).split("\0")


def _check_subcommand(word: str) -> None:
    """Report a mistyped subcommand before the slow imports."""
    if word.startswith("-") or word in SUBCOMMANDS:
        return
    choices = f"; choose from {', '.join(SUBCOMMANDS)}"
    _fail(f"{word}: unknown subcommand{did_you_mean(word, list(SUBCOMMANDS), choices)}")


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
