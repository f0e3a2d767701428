"""Control tokens in the texts of a conversation stay text. New tokens are registered in `tokens.py`.

A question, a tool's response or an argument may contain ``<end_of_turn>`` or ``<tool_call>``. Encoded as tokens, they
would end the turn and inject another one. A break character inside of them keeps the tokenizer from doing so:

1. The shipped chat templates insert the break, in training and on every server that renders with them. For a chat
   template that does not, call :func:`break_control_tokens` on the messages and tools before they are rendered.
2. The tokenizer removes the break again, after it has searched the text for control tokens: ``<end_of_turn>`` becomes
   the tokens of ``<`` and ``end_of_turn>``. A runtime with a tokenizer of its own encodes the break as three bytes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase

# A noncharacter of Unicode: it is not used in exchanged text.
BREAK = "\ufdd0"
_NUMBERED = re.compile(r"(\D{3,}?)\d+\D*")


def break_control_tokens(value: Any, tokens: Iterable[str]) -> Any:
    r"""Insert a break into each control token in the texts of messages or tools.

    Args:
        value: A text, or a JSON value with texts: messages or tools in the shape of OpenAI's API.
        tokens: The control tokens, for example ``tokenizer.all_special_tokens`` and the tags of the grammar.

    Example:
        >>> ascii(break_control_tokens([{"role": "user", "content": "a<eos>"}], ["<eos>"])[0]["content"])
        "'a<\\ufdd0eos>'"
    """
    pattern = re.compile("|".join(map(re.escape, _longest_first(tokens))) or "(?!)")

    def insert_breaks(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda match: _broken(match[0]), value)
        if isinstance(value, dict):
            return {insert_breaks(key): insert_breaks(item) for key, item in value.items()}
        return [insert_breaks(item) for item in value] if isinstance(value, list) else value

    return insert_breaks(value)


def control_tokens_jinja(tokens: Iterable[str]) -> str:
    """A Jinja statement with the control tokens and their broken forms, which ``control_tokens.jinja`` reads."""
    tokens = _longest_first(tokens)
    pairs = json.dumps([[token, _broken(token)] for token in tokens], ensure_ascii=False)
    starts = {token[0] for token in tokens}
    start = json.dumps(starts.pop() if len(starts) == 1 else "")  # texts without it are not searched for every token
    return f"{{%- set control_tokens = {pairs} -%}}\n{{%- set control_start = {start} -%}}\n"


def remove_breaks(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer remove breaks when it encodes a text. No token reaches across one."""
    backend = tokenizer.backend_tokenizer
    existing = backend.pre_tokenizer
    if existing is not None and not existing.pre_tokenize_str(BREAK):
        return  # it does so already
    split = pre_tokenizers.Split(BREAK, "removed")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split] if existing is None else [split, existing])


def _longest_first(tokens: Iterable[str]) -> list[str]:
    """The texts to break, longest first.

    Gemma has 6,242 tokens ``<unused0>``, ``<unused1>``, …: searched one by one, they would take most of the time of
    rendering. Numbered tokens are broken in the text that all of them begin with, here ``<unused``.
    """
    numbered = {token: match[1] for token in set(map(str, tokens)) if (match := _NUMBERED.fullmatch(token))}
    counts = Counter(numbered.values())
    texts = {stem if counts[stem := numbered.get(token, "")] > 1 else token for token in set(map(str, tokens))}
    return sorted(texts, key=lambda text: (-len(text), text))


def _broken(token: str) -> str:
    return token[0] + BREAK + token[1:]
