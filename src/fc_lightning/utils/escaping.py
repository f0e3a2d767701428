"""Escaping of texts from rows and models, which may contain anything, for terminals and Markdown files.

HTML pages escape everything themselves; see :mod:`fc_lightning.utils.html`.
"""

from __future__ import annotations

import re

# Control characters but tab and line feed, marks that reverse the direction of text, and lone surrogates.
_NOT_PRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKDOWN = re.compile(r"[\\`*_\[\]#]")
# Python-Markdown, which TensorBoard uses, has no backslash escapes of these.
_ENTITIES = {ord(char): f"&#{ord(char)};" for char in "<>&|~"}


def printable_text(text: str, one_line: bool = False) -> str:
    r"""A text without characters that control a terminal; they are written as escapes such as ``\x1b``.

    Args:
        text: Any text.
        one_line: Whether line breaks are escaped as well.
    """
    text = _NOT_PRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    return text.replace("\n", "\\n") if one_line else text


def shorten(text: str, limit: int = 80) -> str:
    """The first characters of a text, with an ellipsis if there are more."""
    return text if len(text) <= limit else f"{text[:limit]}…"


def escape_markdown(text: str) -> str:
    """A text for one line of a Markdown file, without any markup or HTML."""
    return _MARKDOWN.sub(r"\\\g<0>", printable_text(" ".join(text.splitlines()))).translate(_ENTITIES)
