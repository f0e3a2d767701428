"""Conversations in canonical form: every source is converted to it, and every later stage works on it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Tool:
    """A function that the model can call.

    Attributes:
        name: Name to call it by.
        description: What it does. May be empty.
        parameters: JSON schema of its arguments.
    """

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)

    def to_openai(self) -> dict[str, Any]:
        """The tool in the shape of OpenAI's API, which Hugging Face's chat templates use too."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool.

    Calls are compared by value: the order of keys does not matter and 1 equals 1.0, but ``"1"`` and 1, or ``True`` and
    1, differ.

    Attributes:
        name: Name of the tool.
        arguments: Arguments as JSON values.
    """

    name: str
    arguments: dict[str, Any]

    def key(self) -> Hashable:
        """A hashable value that is equal for equal calls."""
        return (self.name, _comparison_key(self.arguments))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ToolCall) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())

    def to_dict(self) -> dict[str, Any]:
        """The object ``{"name": …, "arguments": …}`` that is written between the tags."""
        return {"name": self.name, "arguments": self.arguments}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: Who speaks.
        content: Text of the turn: a question, an answer, or a tool's response.
        reasoning: What the assistant thinks before it acts; None without a think block.
        tool_calls: The assistant's calls, in order.
        supervised: Whether an assistant's turn is a training target; if not, it is only context.
    """

    role: Role
    content: str = ""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    supervised: bool = True


@dataclass(frozen=True)
class Conversation:
    """A conversation in canonical form.

    Attributes:
        id: Unique within its source.
        messages: The turns. A system message can only be the first.
        tools: The tools that are offered to the model.
        category: The source's own label (``"parallel"``, ``"irrelevance"``, …); empty without one.
        raw_turns: ``(role, text)`` of each turn as it is in the row, for verbatim rendering; empty without text.
        context_turns: Indices of the raw turns of the model that are not training targets.
        defects: One sentence per problem of the row. In canonical rendering a conversation with defects is not trained
            on, because what cannot be parsed cannot be serialized again.
        gold: Accepted calls of the first turn that calls, in BFCL's form: ``{name: {argument: [accepted, …]}}`` each.
        response_schema: JSON schema that the answer must follow, if any.
        notices: Kind and detail of what is unusual in the row but does not keep it from being used, such as keys that
            were not read.
        rejected: A worse turn in place of the last one, to learn a preference from.
        format: The row format that the conversation was read from.
    """

    id: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    category: str = ""
    raw_turns: tuple[tuple[str, str], ...] = ()
    context_turns: tuple[int, ...] = ()
    defects: tuple[str, ...] = ()
    gold: tuple[dict[str, Any], ...] = ()
    response_schema: dict[str, Any] | None = None
    notices: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    rejected: Message | None = None
    format: str = field(default="", compare=False)


def _comparison_key(value: Any) -> Hashable:
    """A hashable value that is equal for equal JSON values. In Python alone, True equals 1."""
    if isinstance(value, dict):
        return ("object", frozenset((key, _comparison_key(item)) for key, item in value.items()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ("array", tuple(_comparison_key(item) for item in value))
    return (isinstance(value, bool), value)
