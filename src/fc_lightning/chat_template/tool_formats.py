"""Chat formats: how each family of models marks the turns of a conversation.

The text inside a turn follows the same grammar for every family, see :mod:`fc_lightning.conversation.parsing`; only
the markers around it differ. A model's family is recognised by the marker tokens in its tokenizer's vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import asdict, dataclass


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
        turn_separator: Text between two turns.
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
