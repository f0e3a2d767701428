"""Grounding: whether a value of a call occurs in a text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_WORD = re.compile(r"[^\W\d_]+|\d+")
_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
# Either one number with thousands separators or a list of numbers: both readings count.
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d|,\d)")
_UNITS = {"k": 1e3, "thousand": 1e3, "m": 1e6, "million": 1e6, "b": 1e9, "billion": 1e9, "%": 0.01, "percent": 0.01}
_COUNTING = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMERALS = {word: float(number) for number, word in enumerate(_COUNTING.split())}
_NUMERALS |= {"half": 0.5, "dozen": 12.0, "first": 1.0, "second": 2.0, "third": 3.0, "hundred": 100.0, "thousand": 1e3}
# Thai, Lao, Burmese, Khmer, kana and Han do not separate words with spaces; Korean particles follow the noun directly.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_MAX_NUMBER_LENGTH = 300  # characters; a longer number does not fit into a float


@dataclass
class SearchableText:
    """A text to look for values in.

    Attributes:
        source: The text.
    """

    source: str
    _words: list[str] = field(init=False, repr=False)
    _joined_words: str = field(init=False, repr=False)
    _numbers: set[float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._words = words(self.source)
        self._joined_words = f" {' '.join(self._words)} "
        numerals = {_NUMERALS[word] for word in self._words if word in _NUMERALS}
        self._numbers = {*_numbers_in(self.source.lower()), *numerals}

    def contains(self, value: Any) -> bool:
        """Whether all of a value is in the text, ignoring case and punctuation; numbers match in any notation.

        Example:
            >>> SearchableText("Send $1,200 to Ana-María, 5% more").contains([1200, "ana maría", 0.05])
            True
        """
        scalars = list(leaves(value))
        return bool(scalars) and all(self._contains_leaf(scalar) for scalar in scalars)

    def contains_part_of(self, value: Any) -> bool:
        """Whether any word or number of a value is in the text, so that the value may be derived from it."""
        return any(
            self._contains_leaf(leaf)
            or (isinstance(leaf, str) and any(f" {word} " in self._joined_words for word in words(leaf)))
            for leaf in leaves(value)
        )

    def _contains_leaf(self, leaf: Any) -> bool:
        if isinstance(leaf, str):
            if _UNSPACED.search(leaf) and leaf.lower() in self.source.lower():
                return True
            found = words(leaf)
            return f" {' '.join(found)} " in self._joined_words if found else leaf in self.source
        if isinstance(leaf, int | float) and not isinstance(leaf, bool):
            try:
                return abs(float(leaf)) in self._numbers
            except OverflowError:
                return False
        return False


def words(text: str) -> list[str]:
    """The words and numbers of a text, in lower case and without leading zeros."""
    return [word.lstrip("0") or "0" if word[0].isdigit() else word for word in _WORD.findall(text.lower())]


def leaves(value: Any) -> Iterator[Any]:
    """The scalars in nested lists and objects."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    else:
        yield value


def _numbers_in(text: str) -> Iterator[float]:
    for match in (*_NUMBER.finditer(text), *_THOUSANDS.finditer(text)):
        if len(match[0]) > _MAX_NUMBER_LENGTH:
            continue
        number = float(match[0].replace(",", ""))
        yield number
        unit = re.match(r"\s?(%|[a-z]+)", text[match.end() : match.end() + 12])
        if unit and unit[1] in _UNITS:
            yield round(number * _UNITS[unit[1]], 12)
