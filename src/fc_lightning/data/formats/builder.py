"""Shared by all readers: a builder for the conversation, and strict reading of a row's values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fc_lightning.conversation.parsing import (
    CALL_CLOSE,
    CALL_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
    CallSyntaxError,
    call_from_value,
    parse_literal,
    parse_turn,
    render_turn,
    to_json_value,
    tool_from_value,
)
from fc_lightning.conversation.types import Conversation, Message, Role, Tool, ToolCall

Row = Mapping[str, Any]

# Names of the roles in known datasets.
ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "ipython"), "tool"),
}


class RowError(ValueError):
    """A row that cannot be read as a conversation.

    The message is one sentence with the reason; the caller adds file and row.
    """


@dataclass
class ConversationBuilder:
    """Collects a row's messages and defects.

    Attributes:
        messages: Each message with the number of the turn it comes from.
        defects: What is wrong with the row, one sentence each.
        response_schema: The JSON schema of the answer, in JSON mode.
    """

    messages: list[tuple[int, Message]] = field(default_factory=list)
    defects: list[str] = field(default_factory=list)
    response_schema: dict[str, Any] | None = None

    def add(
        self, number: int, role: Role, text: str, thought: str | None = None, calls: tuple[ToolCall, ...] = ()
    ) -> None:
        """Add a message; an empty system text is left out, an empty thought becomes ``None``."""
        if role != "system" or text.strip():
            thought = (thought or "").strip() or None
            self.messages.append((number, Message(role, text.strip(), thought, calls)))

    def add_text_turn(self, number: int, text: str, thought: str = "") -> None:
        """Add an assistant turn from a text that carries thoughts and calls between tags."""
        turn = parse_turn(text)
        self.defects += [f"turn {number}, {error}" for error in turn.errors]
        said = text.partition(THINK_CLOSE)[2] if turn.reasoning is not None else text
        if turn.tool_calls and not said.partition(CALL_OPEN)[0].rstrip().endswith(turn.content):
            # The canonical form has text before the calls only; moving it there would change its meaning.
            self.defects.append(f"turn {number}: text after a call")
        self.add(number, "assistant", turn.content, turn.reasoning or thought, turn.tool_calls)

    def pop_assistant(self) -> Message:
        """Remove and return the last message if it is the assistant's, otherwise return an empty one."""
        is_assistant = bool(self.messages) and self.messages[-1][1].role == "assistant"
        return self.messages.pop()[1] if is_assistant else Message("assistant")

    def read_tools(self, value: Any) -> tuple[Tool, ...]:
        """Read the available tools; tools that cannot be read are a defect."""
        try:
            return read_tools(value)
        except CallSyntaxError as problem:
            self.defects.append(f"tools: {problem}")
            return ()

    def read_schema(self, value: Any) -> None:
        """Read the JSON schema of the answer, an object or a text of one."""
        try:
            schema = parse_literal(value) if isinstance(value, str) else to_json_value(value)
        except CallSyntaxError as problem:
            self.defects.append(f"schema: {problem}")
        else:
            self.response_schema = schema if isinstance(schema, dict) else None
            self.defects += (
                [] if isinstance(schema, dict) else [f"schema: it is not an object but {type(schema).__name__}"]
            )

    def read_gold(self, value: Any) -> tuple[dict[str, Any], ...]:
        """Read each call's accepted values, ``{name: {argument: [value, …]}}`` as the Berkeley leaderboard has them."""
        try:
            calls = to_json_value(_as_list(value))
        except CallSyntaxError as problem:
            self.defects.append(f"gold: {problem}")
            return ()
        for call in calls:
            arguments = next(iter(call.values())) if isinstance(call, dict) and len(call) == 1 else None
            if not isinstance(arguments, dict) or not all(isinstance(values, list) for values in arguments.values()):
                self.defects.append("gold: a call is {name: {argument: [accepted value, …]}}")
                return ()
        return tuple(calls)

    def read_calls(self, number: int, value: Any) -> tuple[ToolCall, ...]:
        """Read the calls of a turn, one or a list, objects or texts; each unreadable one is a defect."""
        calls: list[ToolCall] = []
        try:
            values = _as_list(value)
        except CallSyntaxError as problem:
            self.defects.append(f"turn {number}, call 1: {problem}")
            return ()
        for index, item in enumerate(values, 1):
            try:
                calls.append(_read_call(item))
            except CallSyntaxError as problem:
                self.defects.append(f"turn {number}, call {index}: {problem}")
        return tuple(calls)

    def read_parts(self, number: int, content: Any) -> tuple[str, str, list[Any]]:
        """Split a content (a text, a list of typed parts, or null) into text, reasoning and calls."""
        if content is None or isinstance(content, str):
            return text_of(content or "", f"turn {number}: its content"), "", []
        if not isinstance(content, list):
            raise RowError(f"turn {number}: its content is {type(content).__name__}, not text, parts or null")
        texts: list[str] = []
        thoughts: list[str] = []
        calls: list[Any] = []
        for part in content:
            part = part if isinstance(part, dict) else {"text": part}
            kind = str(part.get("type") or "text")
            keys = ("text", "value", "content", kind, "function")
            value = next((part[key] for key in keys if part.get(key)), "")
            if kind in ("tool_call", "function_call"):
                calls.append(value or part)
            elif kind in ("text", "input_text", "output_text"):
                texts.append(text_of(value, f"turn {number}: a part"))
            elif kind in ("reasoning", "thinking"):
                thoughts.append(text_of(value, f"turn {number}: a part"))
            else:
                self.defects.append(f"turn {number}: a part of type {kind!r:.40} is neither text nor a call")
        return "\n".join(texts), "\n".join(thoughts), calls

    def build(self, row: Row, tools: tuple[Tool, ...], raw_turns: list[tuple[str, str]] | None = None) -> Conversation:
        """Make the conversation; a message that cannot be written and read back is a defect."""
        role_before = ""
        flawed = {re.split("[:,]", defect, maxsplit=1)[0] for defect in self.defects}
        for index, (number, message) in enumerate(self.messages):
            problem = _problem(message) if message.role == "assistant" else ""
            if message.role == "system" and index:
                problem = "a system message that is not the first"
            elif message.role == role_before == "assistant":
                problem = problem or "an assistant turn directly after another one"
            self.defects += [f"turn {number}: {problem}"] if problem and f"turn {number}" not in flawed else []
            role_before = message.role
        gold = self.read_gold(row.get("gold"))
        row_id, category = row.get("id"), row.get("category")
        return Conversation(
            id=text_of(str(row_id), "`id`") if isinstance(row_id, str | int) and row_id is not True else "",
            messages=tuple(message for _, message in self.messages),
            tools=tools,
            category=text_of(category, "`category`") if isinstance(category, str) else "",
            raw_turns=tuple(raw_turns or ()),
            defects=tuple(self.defects),
            gold=gold,
            response_schema=self.response_schema,
        )


def _problem(message: Message) -> str:
    """Why an assistant message cannot be written and read back; empty if it can."""
    for where, text, tags in (
        ("text", message.content, (CALL_OPEN, CALL_CLOSE, THINK_OPEN, THINK_CLOSE)),
        ("thought", message.reasoning or "", (THINK_OPEN, THINK_CLOSE)),
    ):
        if tag := next((tag for tag in tags if tag in text), ""):
            return f"its {where} contains the tag {tag} (format `hermes` reads rows that write calls as text)"
    if not message.content and not message.tool_calls:
        return "neither an answer nor a call"
    turn = parse_turn(render_turn(message))
    read_back = Message("assistant", turn.content, turn.reasoning, turn.tool_calls)
    return "" if read_back == message and not turn.errors else "it reads differently in canonical form"


def read_tools(value: Any) -> tuple[Tool, ...]:
    """Read the tools of a list, an object or a text of either.

    Raises:
        CallSyntaxError: If one of them cannot be read; half of the tools would be a different task.
    """
    is_text = isinstance(value, str)
    return tuple(_read_tool(item, is_text) for item in _as_list(value))


def _read_tool(value: Any, is_json_value: bool) -> Tool:
    if isinstance(value, str):
        value, is_json_value = parse_literal(value), True
    function = value.get("function", value) if isinstance(value, dict) else value
    parameters = function.get("parameters") if isinstance(function, dict) else None
    if isinstance(parameters, dict) and parameters:
        schema = _standard(parameters)
        # Some sources put `required` next to the schema instead of inside.
        required = value.get("required") or function.get("required")
        if "required" not in schema and isinstance(required, list):
            schema = {**schema, "required": required}
        function = {**function, "parameters": schema}
    return tool_from_value(function, is_json_value)


def _standard(parameters: dict[str, Any]) -> dict[str, Any]:
    """Turn the bare ``{name: {description, type}}`` of some sources into a JSON schema; keep a schema unchanged."""
    is_schema = isinstance(parameters.get("type"), str) or not all(
        isinstance(value, dict) for value in parameters.values()
    )
    return parameters if is_schema or "properties" in parameters else {"type": "object", "properties": parameters}


def _read_call(value: Any) -> ToolCall:
    is_json_value = isinstance(value, str)
    value = parse_literal(value) if is_json_value else value
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if isinstance(value, dict) and "arguments" in value and value["arguments"] in (None, ""):
        # Servers write these for a call without arguments.
        value = {**value, "arguments": {}}
    return call_from_value(value, is_json_value)


def _as_list(value: Any) -> list[Any]:
    """The values of a list, a single object, a text of either, or a text with one object per line."""
    if isinstance(value, str):
        try:
            value = parse_literal(value) if value.strip() else None
        except CallSyntaxError:
            lines = [line for line in value.splitlines() if line.strip()]
            if len(lines) < 2 or not all(line.lstrip().startswith("{") for line in lines):
                raise
            value = [parse_literal(line) for line in lines]
    if value is None:
        return []
    if not isinstance(value, dict | list):
        raise CallSyntaxError(f"it is neither an object nor a list but {type(value).__name__}")
    return value if isinstance(value, list) else [value]


def turns_of(
    row: Row, columns: tuple[str, ...], roles: Mapping[str, Role] = ROLES
) -> Iterator[tuple[str, Role, dict[str, Any]]]:
    """The turns of the first column that is filled: the row's name of the role, the role, and the turn."""
    column = next((name for name in columns if row.get(name)), columns[0])
    turns = row.get(column)
    if not isinstance(turns, list) or not turns:
        raise RowError(f"`{column}` is not a list of turns" if turns else f"the row has no turns in `{column}`")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise RowError(f"turn {number} is not an object but {type(turn).__name__}")
        name = turn.get("from") or turn.get("role")
        if not isinstance(name, str) or name not in roles:
            raise RowError(f"turn {number} has an unknown role, {name!r:.40}; known are {', '.join(roles)}")
        yield name, roles[name], turn


def turn_text(turn: dict[str, Any], number: int) -> str:
    """The text of a ShareGPT or Hermes turn, from ``value`` or ``content``."""
    value = turn.get("value")
    return text_of(turn.get("content") if value is None else value, f"turn {number}: its text")


def column_text(row: Row, key: str, needed: bool = False) -> str:
    """A column as text, unchanged; other values as JSON, a missing one as an empty text."""
    value = row.get(key)
    if needed and not value:
        raise RowError(f"the row has no `{key}`")
    if value is not None and not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False)
    return text_of(value or "", f"`{key}`")


def text_of(value: Any, what: str) -> str:
    """Check that a value is a text that can be encoded."""
    if not isinstance(value, str):
        raise RowError(f"{what} is not text but {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(f"{what} contains half a surrogate pair, which cannot be encoded") from None
    return value
