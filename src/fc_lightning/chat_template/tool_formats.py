"""Families of models: how each marks the turns of a conversation.

The grammar of acting is the same for all of them, see :mod:`fc_lightning.conversation.parsing`; only what stands around a turn
differs. Which family a model belongs to is seen from the vocabulary of its tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class ChatFormat:
    """How a family of models marks turns: ``{open}{role}{head}…{close}{gap}``.

    Attributes:
        name: Of the family.
        tokens: What its vocabulary has; this is how it is recognised.
        open: Opens a turn, before the role.
        head: Between the role and the text.
        close: Ends a turn; the model learns to say it.
        gap: Between turns.
        model: The role of the model's turns.
        tool: The role of a tool's turns.
        bos: Whether a conversation begins with the tokenizer's token for it.
    """

    name: str
    tokens: tuple[str, ...]
    open: str
    head: str
    close: str
    gap: str
    model: str = "assistant"
    tool: str = "tool"
    bos: bool = True

    @property
    def answer(self) -> str:
        """What opens a turn of the model."""
        return f"{self.open}{self.model}{self.head}"

    def jinja(self) -> str:
        """The family as a line of Jinja, that a template for all families begins with."""
        return f"{{%- set family = {json.dumps(asdict(self))} -%}}\n"


CHAT_FORMATS = (
    # Gemma 1 to 3 have a template of their own: no system role, see templates/gemma_canonical.jinja.
    ChatFormat("gemma", ("<start_of_turn>", "<end_of_turn>"), "<start_of_turn>", "\n", "<end_of_turn>", "\n", "model"),
    ChatFormat("gemma4", ("<|turn>", "<turn|>"), "<|turn>", "\n", "<turn|>", "\n", "model"),
    ChatFormat("chatml", ("<|im_start|>", "<|im_end|>"), "<|im_start|>", "\n", "<|im_end|>", "\n", bos=False),
    ChatFormat(
        "llama3",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        open="<|start_header_id|>",
        head="<|end_header_id|>\n\n",
        close="<|eot_id|>",
        gap="",
        tool="ipython",
    ),
)


def chat_format_of(vocabulary: Container[str]) -> ChatFormat | None:
    """The family whose marks are in a vocabulary; None if it is none of those that are known here."""
    return next((one for one in CHAT_FORMATS if all(token in vocabulary for token in one.tokens)), None)
