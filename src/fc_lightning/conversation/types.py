"""Conversations: the one form that every source becomes and every later stage works on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Attributes:
        name: The name to call it by.
        description: What it does, in words. May be empty.
        parameters: JSON schema of its arguments.
    """

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)

    def to_openai(self) -> dict[str, Any]:
        """The tool as OpenAI's API and Hugging Face's chat templates write it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolCall:
    """One call: a tool's name and its arguments as plain JSON values.

    Two calls are equal (``==``) if they are the same call to a program: the order of keys does not count, 1 and 1.0 are
    one number, but ``"1"`` and 1, and ``True`` and 1, are different values.
    """

    name: str
    arguments: dict[str, Any]

    def key(self) -> Hashable:
        """A hashable value, equal for equal calls."""
        return (self.name, _canonical(self.arguments))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ToolCall) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())

    def to_dict(self) -> dict[str, Any]:
        """``{"name": …, "arguments": …}``, the object that stands between the tags."""
        return {"name": self.name, "arguments": self.arguments}


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: Who speaks.
        content: The text: a question, an answer, or a tool's response as it came.
        reasoning: What an assistant thought before acting; ``None`` if it did not.
        tool_calls: The calls of an assistant's turn, in order.
        supervised: Whether an assistant's turn is a training target; if not, it is only context.
    """

    role: Role
    content: str = ""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    supervised: bool = True


@dataclass(frozen=True)
class Conversation:
    """A whole conversation in canonical form, whatever source it came from.

    Attributes:
        id: Unique within its source.
        messages: The turns. A system message, if any, is the first.
        tools: The tools on offer.
        category: The source's own label (``"parallel"``, ``"irrelevance"``, …); empty if it has none.
        raw_turns: ``(role, text)`` of each turn as the row has it, for verbatim rendering; empty if it has none.
        defects: What is wrong with the row, a sentence each. A conversation with defects is not trained on in canonical
            form, because what cannot be parsed cannot be written again.
        gold: Other calls that are right too, as BFCL writes them: ``{name: {argument: [accepted, …]}}`` for each call.
        response_schema: The JSON schema that the answer must follow, if it must follow one.
        notices: Kind and detail of what is unusual in the row but does not keep it from being used, such as keys that
            were not read.
        format: The row format that the conversation was read from.
    """

    id: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    category: str = ""
    raw_turns: tuple[tuple[str, str], ...] = ()
    defects: tuple[str, ...] = ()
    gold: tuple[dict[str, Any], ...] = ()
    response_schema: dict[str, Any] | None = None
    notices: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    format: str = field(default="", compare=False)


def _canonical(value: Any) -> Hashable:
    """A hashable stand-in that is equal for equal JSON values; Python alone takes True and 1 for the same."""
    if isinstance(value, dict):
        return ("object", frozenset((key, _canonical(item)) for key, item in value.items()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ("array", tuple(_canonical(item) for item in value))
    return (isinstance(value, bool), value)
