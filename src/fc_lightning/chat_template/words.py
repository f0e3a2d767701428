"""Encoding by words: a text is cut where no token can reach across, and each different word is encoded once.

Gemma's tokenizer takes a text as a single word: its normalizer makes ``▁`` of every space, and nothing splits there. So
its own cache of words never hits, though the same words come again and again. But a token is made by merging
neighbours: where no token of the vocabulary has a certain pair of characters inside, the ids on both sides of that pair
do not depend on each other. :func:`word_pattern` looks up in the vocabulary where that is so.
"""

from __future__ import annotations

import json
import re
from array import array
from typing import Any

from tokenizers import Tokenizer, models

_SPACE = "▁"  # what the normalizer makes of a space
_SPACES = f" {_SPACE}"
_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
# Does nothing behind that normalizer: there are no spaces left.
_IDLE_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
# A token with one of these characters before a space keeps the cuts away from it; with more of them little is cut.
_MAX_EXCEPTIONS = 16
_MAX_WORDS = 2**17  # that are remembered
_MAX_WORD = 128  # characters of a word that is remembered


def word_pattern(backend: Tokenizer) -> re.Pattern[str] | None:
    """Finds the words of a text: pieces that can be encoded one by one, with the ids of the whole text.

    A word ends before a space, and before and behind line breaks.

    Args:
        backend: The tokenizer of Hugging Face's ``tokenizers``.

    Returns:
        The pattern, for ``findall``; None if the tokenizer is of another kind, or its tokens reach across.
    """
    model = backend.model
    if not isinstance(model, models.BPE) or model.dropout or model.ignore_merges:
        return None
    if model.continuing_subword_prefix or model.end_of_word_suffix or _state(backend.normalizer) != _NORMALIZER:
        return None
    if _state(backend.pre_tokenizer) not in (None, _IDLE_SPLIT):
        return None
    added = backend.get_added_tokens_decoder().values()
    if any(token.single_word or token.lstrip or token.rstrip for token in added):
        return None
    tokens = backend.get_vocab(with_added_tokens=True)
    # A line break or a space that is no token of its own would be bytes, or unknown together with its neighbours.
    if _SPACE not in tokens or "\n" not in tokens:
        return None
    exceptions = set()
    for token in tokens:
        text = token.replace(" ", _SPACE)
        if "\n" in text and text.strip("\n"):
            return None
        if _SPACE in text:
            exceptions |= set(re.findall(f"([^{_SPACE}]){_SPACE}", text))
    if len(exceptions) > _MAX_EXCEPTIONS:
        return None
    glued = f"(?:(?<=[{re.escape(''.join(sorted(exceptions)))}])[{_SPACES}]+[^{_SPACES}\n]*)*" if exceptions else ""
    return re.compile(f"\n+|[{_SPACES}]*[^{_SPACES}\n]*{glued}")


class Words(dict[str, bytes]):
    """The ids of words, each as four bytes, looked up once in the tokenizer.

    Args:
        backend: The tokenizer; it is only asked.
        pattern: From :func:`word_pattern`.
    """

    def __init__(self, backend: Tokenizer, pattern: re.Pattern[str]):
        super().__init__()
        self.backend, self.pattern = backend, pattern

    def __missing__(self, word: str) -> bytes:
        ids = array("i", self.backend.encode(word, add_special_tokens=False).ids).tobytes()
        if len(word) <= _MAX_WORD:
            if len(self) >= _MAX_WORDS:
                self.clear()
            self[word] = ids
        return ids

    def encode(self, text: str, start: int, end: int) -> bytes:
        """The ids of a part of a text that begins and ends at a cut, four bytes each."""
        return b"".join(map(self.__getitem__, self.pattern.findall(text, start, end)))

    def is_cut(self, text: str, place: int) -> bool:
        """Whether a word ends before the character at a place."""
        if not 0 < place < len(text):
            return True
        before, behind = text[place - 1], text[place]
        if "\n" in (before, behind):
            return before != behind
        return behind in _SPACES and self.pattern.findall(before + behind, 0, 2)[0] == before


def _state(part: Any) -> Any:
    """What a normalizer or pre-tokenizer is set to; None if there is none."""
    return None if part is None else json.loads(part.__getstate__())
