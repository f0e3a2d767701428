"""The tags of the grammar as tokens of a tokenizer."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase

from fc_lightning.chat_template.tool_formats import ToolFormat, native_syntax
from fc_lightning.utils.errors import first_line
from fc_lightning.utils.pretrained import BaseModelError, resolve_base


class SpecialToken(StrEnum):
    """The tags of the grammar. Each is one token id once it is registered."""

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
    base: str, revision: str | None = None, special_tokens: tuple[str, ...] = (), tool_format: ToolFormat = "auto"
) -> tuple[PreTrainedTokenizerBase, dict[int, list[int]]]:
    """Load a base model's tokenizer and register tags in it.

    Args:
        base: See :func:`resolve_base`.
        revision: Revision on the Hugging Face Hub.
        special_tokens: Texts that become one token each. The Hermes tags are omitted if calls are written natively.
        tool_format: See :func:`native_syntax`.

    Returns:
        The tokenizer, which equal calls share, and for each new token id the ids of the tokens that it replaces.

    Raises:
        BaseModelError: If the base has no fast tokenizer.
    """
    folder = resolve_base(base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=False)
    except Exception as error:  # a damaged file raises anything
        raise BaseModelError(
            f"{base}: the tokenizer could not be loaded (`model.base`): {first_line(error)}"
        ) from error
    if not tokenizer.is_fast:
        raise BaseModelError(f"{base}: needs a fast tokenizer, which reports offsets; this is a slow one")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    is_native = native_syntax(tokenizer, tool_format) is not None
    new = [token for token in special_tokens if not (is_native and token in set(SpecialToken))]
    return tokenizer, register_tokens(tokenizer, new)


def register_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]) -> dict[int, list[int]]:
    """Make each text one token of a tokenizer.

    They are added as ordinary tokens, not special ones: servers decode with ``skip_special_tokens=True``, which would
    drop the tags, and calls could not be parsed.

    Args:
        tokenizer: Changed in place.
        tokens: The texts. Those that are already added tokens keep their id; if they are special, they become ordinary
            in what is saved.

    Returns:
        For each new token id, the ids of the tokens that it replaces.
    """
    # A tag that is in the vocabulary, but not an added token, is not recognized after a space: it is added too.
    new = [str(token) for token in tokens if str(token) not in tokenizer.get_added_vocab()]
    replaced = [tokenizer(token, add_special_tokens=False).input_ids for token in new]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in new])
    special = [str(token) for token in tokens if _is_special(tokenizer, str(token))]
    if special:
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in special])
    new_ids = tokenizer.convert_tokens_to_ids(new)
    return {new_id: old_ids for new_id, old_ids in zip(new_ids, replaced, strict=True) if old_ids != [new_id]}


def _is_special(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    added = tokenizer.added_tokens_decoder.get(tokenizer.convert_tokens_to_ids(token))
    return added is not None and added.special


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, tool_parser: str = "json_tools") -> None:
    """Write a tokenizer that is loaded exactly as it is.

    Model-specific classes such as ``GemmaTokenizer`` build their pre-tokenizer themselves when they are loaded, and the
    removal of breaks would be lost; see :mod:`fc_lightning.chat_template.control_tokens`. The generic class does not.

    Args:
        tokenizer: The tokenizer.
        folder: An existing folder.
        tool_parser: Name of the parser with which mlx-lm reads calls.
    """
    tokenizer.save_pretrained(str(folder))
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["padding_side"] = tokenizer.padding_side  # otherwise a default of the class
    config["model_input_names"] = tokenizer.model_input_names
    config["tool_parser_type"] = tool_parser
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A fingerprint of the mapping from token IDs to texts."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda token: token[1])
    return hashlib.sha256("\n".join(f"{id} {text!r}" for text, id in tokens).encode()).hexdigest()
