"""Formatting other libraries' exceptions for one-line error messages."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    r"""The first line of an error's message.

    Example:
        >>> first_line(ValueError("no such file\nSee the documentation"))
        'no such file'
    """
    return str(error).strip().split("\n", 1)[0]
