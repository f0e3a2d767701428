"""Errors that the command line prints in one line; see `exit_on_error` in `training/distributed.py`."""

from __future__ import annotations


class UserError(ValueError):
    """An error that the user can fix: reported without a traceback. The message says what to do."""


def first_line(error: BaseException) -> str:
    r"""The first line of an error's message.

    Example:
        >>> first_line(ValueError("no such file\nSee the documentation"))
        'no such file'
    """
    return str(error).strip().split("\n", 1)[0]
