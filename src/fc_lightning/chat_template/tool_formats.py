"""Chat formats (``CHAT_FORMATS``): how each model family marks the turns of a conversation, and its tool-call format.

The text inside a turn follows the Hermes grammar (see :mod:`fc_lightning.conversation.parsing`), or the native language
of FunctionGemma or Gemma 4 (see :mod:`fc_lightning.conversation.native_calls`). A model's family and language are
recognized by the tokens in its tokenizer's vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import asdict, dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from fc_lightning.conversation.native_calls import FUNCTIONGEMMA, GEMMA4, NativeSyntax
from fc_lightning.utils.pretrained import BaseModelError

ToolFormat = Literal["auto", "hermes", "functiongemma", "gemma4"]
_NATIVE = {"functiongemma": (FUNCTIONGEMMA, "gemma"), "gemma4": (GEMMA4, "gemma4")}


@dataclass(frozen=True)
class ChatFormat:
    """The markers of one family of models.

    A turn is ``{turn_start}{role}{role_end}…{turn_end}{turn_separator}``.

    Attributes:
        name: Name of the format.
        marker_tokens: Tokens that identify the format: a vocabulary that has all of them belongs to it.
        turn_start: Opens a turn, before the role.
        role_end: Separates the role from the text.
        turn_end: Ends a turn. It is supervised in the model's turns.
        turn_separator: Text between turns.
        model_role: Role name of the model's turns.
        tool_role: Role name of turns with a tool's response.
        system_role: Role name of the system text; ``user`` puts it in front of the first user turn.
        has_bos: Whether a conversation begins with the tokenizer's BOS token.
    """

    name: str
    marker_tokens: tuple[str, ...]
    turn_start: str
    role_end: str
    turn_end: str
    turn_separator: str
    model_role: str = "assistant"
    tool_role: str = "tool"
    system_role: str = "system"
    has_bos: bool = True

    @property
    def generation_prompt(self) -> str:
        """The text that opens a turn of the model."""
        return f"{self.turn_start}{self.model_role}{self.role_end}"

    def jinja(self) -> str:
        """A Jinja statement that sets ``chat_format``, the variable that ``turns_canonical.jinja`` reads."""
        return f"{{%- set chat_format = {json.dumps(asdict(self))} -%}}\n"


CHAT_FORMATS = (
    ChatFormat(
        "gemma",
        ("<start_of_turn>", "<end_of_turn>"),
        turn_start="<start_of_turn>",
        role_end="\n",
        turn_end="<end_of_turn>",
        turn_separator="\n",
        model_role="model",
        system_role="user",  # Gemma 1 to 3 have no system role
    ),
    ChatFormat(
        "gemma4",
        ("<|turn>", "<turn|>"),
        turn_start="<|turn>",
        role_end="\n",
        turn_end="<turn|>",
        turn_separator="\n",
        model_role="model",
    ),
    ChatFormat(
        "chatml",
        ("<|im_start|>", "<|im_end|>"),
        turn_start="<|im_start|>",
        role_end="\n",
        turn_end="<|im_end|>",
        turn_separator="\n",
        has_bos=False,
    ),
    ChatFormat(
        "llama3",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        turn_start="<|start_header_id|>",
        role_end="<|end_header_id|>\n\n",
        turn_end="<|eot_id|>",
        turn_separator="",
        tool_role="ipython",
    ),
)


def chat_format_of(vocabulary: Container[str]) -> ChatFormat | None:
    """The first format whose marker tokens are all in a vocabulary; None if there is none."""
    return next((each for each in CHAT_FORMATS if all(token in vocabulary for token in each.marker_tokens)), None)


def native_syntax(tokenizer: PreTrainedTokenizerBase, tool_format: ToolFormat = "auto") -> NativeSyntax | None:
    """The native tool language that a model is trained in; None for Hermes, JSON between tags.

    Args:
        tokenizer: The base's tokenizer.
        tool_format: ``auto`` is the native language whose tags are single tokens of the tokenizer, if there is one.

    Raises:
        BaseModelError: If the vocabulary does not have the tokens of the format.
    """
    if tool_format == "hermes":
        return None
    vocabulary = tokenizer.get_added_vocab()
    chat_format = chat_format_of(tokenizer.get_vocab())
    for syntax, markers in [_NATIVE[tool_format]] if tool_format in _NATIVE else _NATIVE.values():
        missing = [token for token in syntax.tokens if token not in vocabulary]
        if chat_format is not None and chat_format.name == markers and not missing:
            return syntax
        if tool_format != "auto":
            lacking = f"the token {missing[0]}" if missing else "its turn markers"
            raise BaseModelError(
                f"`model.tool_format: {tool_format}`: {tokenizer.name_or_path} does not have {lacking}; use `auto` or "
                "`hermes`"
            )
    return None
