"""The word cache: Gemma's tokenizer encodes each different word once.

Gemma's tokenizer treats a whole text as a single word, because its normalizer turns spaces into ``▁`` before anything
is split, so its built-in cache never hits. But a token is made by merging neighbors: where no token of the vocabulary
has a certain pair of characters inside, the ids on both sides of that pair do not depend on each other.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from typing import Any

from tokenizers import Tokenizer, models

from fc_lightning.chat_template.control_tokens import BREAK

_SPACE = "▁"
_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
# These split nothing but breaks: the normalizer leaves no spaces.
_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
_REMOVE_BREAKS = {"type": "Split", "pattern": {"String": BREAK}, "behavior": "Removed", "invert": False}
_MAX_EXCEPTIONS = 16
_MAX_CHARACTERS = 4_000_000  # of the words in the cache, which then takes about 100 MB


class WordCache:
    """Encodes texts word by word, with the ids of the complete text.

    Args:
        backend: The tokenizer; it must not change.
        pattern: Finds the words of a text; see :func:`word_pattern`.
    """

    def __init__(self, backend: Tokenizer, pattern: re.Pattern[str]):
        self._backend, self._pattern = backend, pattern
        self._ids: dict[str, bytes] = {}
        self._num_characters = 0
        self._line_break = backend.encode("\n", add_special_tokens=False).ids[0]

    @classmethod
    def of(cls, backend: Tokenizer, vocabulary: Iterable[str]) -> WordCache | None:
        """The cache of a tokenizer; None if its texts cannot be encoded by words."""
        pattern = word_pattern(backend, vocabulary)
        return pattern and cls(backend, pattern)

    def encode(self, texts: Sequence[str], places: Sequence[Sequence[int]]) -> list[tuple[list[int], dict[int, int]]]:
        """The ids of each text, and the number of tokens before each of its places, where words must end."""
        parts = [
            [self._pattern.findall(text, start, end) for start, end in pairwise(borders)]
            for text, borders in zip(texts, places, strict=True)
        ]
        words = set(chain.from_iterable(chain.from_iterable(parts)))
        if self._num_characters > _MAX_CHARACTERS:
            self._ids, self._num_characters = {}, 0
        self._add(words.difference(self._ids))
        return [self._joined(words, borders) for words, borders in zip(parts, places, strict=True)]

    def _add(self, words: set[str]) -> None:
        """Encode words as the lines of one text, which takes half the time of encoding each."""
        lines = [word for word in words if word and "\n" not in word]
        for word in words.difference(lines):
            self._ids[word] = array("i", self._backend.encode(word, add_special_tokens=False).ids).tobytes()
        text = "".join(f"{line}\n" for line in lines)
        ids, start = self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids, 0
        for line in lines:
            end = ids.index(self._line_break, start)
            self._ids[line] = array("i", ids[start:end]).tobytes()
            start = end + 1
        self._num_characters += sum(map(len, words))

    def _joined(self, parts: list[list[str]], borders: Sequence[int]) -> tuple[list[int], dict[int, int]]:
        ids, tokens_before = bytearray(), dict.fromkeys(borders[:1], 0)
        for words, end in zip(parts, borders[1:], strict=True):
            ids += b"".join(map(self._ids.__getitem__, words))
            tokens_before[end] = len(ids) // 4
        return array("i", bytes(ids)).tolist(), tokens_before


def word_pattern(backend: Tokenizer, vocabulary: Iterable[str]) -> re.Pattern[str] | None:
    """Finds the words of a text: a run of line breaks, or spaces and what follows up to the next space.

    Returns:
        The pattern, for ``findall``; None if the tokenizer is not like Gemma's, or its tokens reach across words.
    """
    model, splits = backend.model, _state(backend.pre_tokenizer) or {"type": "Sequence", "pretokenizers": []}
    splits = splits["pretokenizers"] if splits["type"] == "Sequence" else [splits]
    if (
        not isinstance(model, models.BPE)
        or any((model.dropout, model.ignore_merges, model.continuing_subword_prefix, model.end_of_word_suffix))
        or _state(backend.normalizer) != _NORMALIZER
        or not all(split in (_SPLIT, _REMOVE_BREAKS) for split in splits)
        or any(one.single_word or one.lstrip or one.rstrip for one in backend.get_added_tokens_decoder().values())
        # A space that is not a token would be bytes, or unknown together with its neighbors.
        or not {_SPACE, "\n"} <= set(vocabulary)
    ):
        return None
    tokens = BREAK.join(vocabulary).replace(" ", _SPACE)
    # A word goes on after a space where a token has the same character before one.
    exceptions = set(re.findall(f"([^{_SPACE}{BREAK}]){_SPACE}", tokens))
    if len(exceptions) > _MAX_EXCEPTIONS or re.search(f"\n[^\n{BREAK}]|[^\n{BREAK}]\n", tokens):
        return None
    word = f"[ {_SPACE}]*[^ {_SPACE}\n]*"
    if exceptions:
        word += f"(?:(?<=[{re.escape(''.join(sorted(exceptions)))}])[ {_SPACE}]+[^ {_SPACE}\n]*)*"
    return re.compile(f"\n+|{word}")


def _state(part: Any) -> Any:
    """The settings of a normalizer or pre-tokenizer; None if there is none."""
    return None if part is None else json.loads(part.__getstate__())
