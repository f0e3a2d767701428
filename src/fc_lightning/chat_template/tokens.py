"""The tags of the grammar as tokens of a tokenizer."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from enum import StrEnum

from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase

from fc_lightning.utils.errors import first_line
from fc_lightning.utils.pretrained import BaseModelError, resolve_base


class SpecialToken(StrEnum):
    """The tags of the grammar. Registered, each is one token id."""

    THINK = "<think>"
    THINK_END = "</think>"
    TOOL_CALL = "<tool_call>"
    TOOL_CALL_END = "</tool_call>"
    TOOL_RESPONSE = "<tool_response>"
    TOOL_RESPONSE_END = "</tool_response>"
    TOOLS = "<tools>"
    TOOLS_END = "</tools>"


@functools.lru_cache(maxsize=4)
def load_tokenizer(
    base: str, revision: str | None = None, special_tokens: tuple[str, ...] = ()
) -> tuple[PreTrainedTokenizerBase, dict[int, list[int]]]:
    """The base's tokenizer, with the tags registered.

    Args:
        base: See :func:`resolve_base`.
        revision: Revision on the hub.
        special_tokens: Texts that become one token each.

    Returns:
        The tokenizer, shared by all who ask for the same; and for each new id the ids of the pieces of its text.

    Raises:
        BaseModelError: If there is none.
    """
    folder = resolve_base(base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{base}: no tokenizer could be loaded (`model.base`): {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise BaseModelError(f"{base}: a fast tokenizer is needed, with offsets; this is a slow one")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, register_tokens(tokenizer, special_tokens)


def register_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]) -> dict[int, list[int]]:
    """Make each text one token of the tokenizer.

    They are added as ordinary tokens, not as special ones: ``decode(skip_special_tokens=True)``, which servers use,
    would drop special ones, and the calls could not be parsed any more.

    Args:
        tokenizer: Changed in place.
        tokens: The texts. Those that are one token already are left alone.

    Returns:
        For each new id, the ids of the pieces that its text was made of before.
    """
    # A tag that is in the vocabulary as a piece only is not found where a space stands before it: it is added too.
    new = [str(token) for token in tokens if str(token) not in tokenizer.get_added_vocab()]
    pieces = [tokenizer(token, add_special_tokens=False).input_ids for token in new]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in new])
    ids = tokenizer.convert_tokens_to_ids(new)
    return {id: old for id, old in zip(ids, pieces, strict=True) if old != [id]}


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A fingerprint of which text each token id stands for."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda token: token[1])
    return hashlib.sha256("\n".join(f"{id} {text!r}" for text, id in tokens).encode()).hexdigest()
