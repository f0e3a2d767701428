"""Grounding: whether a value of a call can be read in a text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_WORD = re.compile(r"[^\W\d_]+|\d+")
_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d|,\d)")  # or a list of numbers: both are meant
_SUFFIXES = {"k": 1e3, "thousand": 1e3, "m": 1e6, "million": 1e6, "b": 1e9, "billion": 1e9, "%": 0.01, "percent": 0.01}
_COUNT = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMERALS = {word: float(number) for number, word in enumerate(_COUNT.split())}
_NUMERALS |= {"half": 0.5, "dozen": 12.0, "first": 1.0, "second": 2.0, "third": 3.0, "hundred": 100.0, "thousand": 1e3}


@dataclass
class SearchableText:
    """A text that values are looked for in.

    Attributes:
        source: The text itself.
    """

    source: str
    _words: list[str] = field(init=False, repr=False)
    _joined: str = field(init=False, repr=False)
    _numbers: set[float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._words = words(self.source)
        self._joined = f" {' '.join(self._words)} "
        self._numbers = set(_numbers(self.source.lower())) | {_NUMERALS[w] for w in self._words if w in _NUMERALS}

    def contains(self, value: Any) -> bool:
        """Whether the whole value stands in the text, whatever its case and punctuation; a number in any notation.

        Example:
            >>> SearchableText("Send $1,200 to Ana-María, 5% more").contains([1200, "ana maría", 0.05])
            True
        """
        leaves_ = list(leaves(value))
        return bool(leaves_) and all(self._contains_leaf(leaf) for leaf in leaves_)

    def contains_part_of(self, value: Any) -> bool:
        """Whether any word or number of the value stands in the text: the value may be a form of what is there."""
        return any(
            self._contains_leaf(leaf)
            or (isinstance(leaf, str) and any(f" {word} " in self._joined for word in words(leaf)))
            for leaf in leaves(value)
        )

    def _contains_leaf(self, leaf: Any) -> bool:
        if isinstance(leaf, str):
            found = words(leaf)
            return f" {' '.join(found)} " in self._joined if found else leaf in self.source
        if isinstance(leaf, int | float) and not isinstance(leaf, bool):
            return abs(float(leaf)) in self._numbers
        return False


def words(text: str) -> list[str]:
    """The words and numbers of a text in lower case, without leading zeros."""
    return [word.lstrip("0") or "0" if word[0].isdigit() else word for word in _WORD.findall(text.lower())]


def leaves(value: Any) -> Iterator[Any]:
    """The values inside of lists and objects."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    else:
        yield value


def _numbers(text: str) -> Iterator[float]:
    for match in (*_NUMBER.finditer(text), *_THOUSANDS.finditer(text)):
        if len(match[0]) > 300:  # not a number that a float holds
            continue
        number = float(match[0].replace(",", ""))
        yield number
        suffix = re.match(r"\s?(%|[a-z]+)", text[match.end() : match.end() + 12])
        if suffix and suffix[1] in _SUFFIXES:
            yield round(number * _SUFFIXES[suffix[1]], 12)
