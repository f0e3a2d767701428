"""Chat turns: reads roles, contents, calls and results under the key names in use. Most formats build on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fc_lightning.conversation.parsing import CallSyntaxError
from fc_lightning.conversation.types import Conversation, Role
from fc_lightning.data.formats.builder import ConversationBuilder
from fc_lightning.data.formats.format import Reader
from fc_lightning.data.formats.system_text import blocks, split_system
from fc_lightning.data.formats.values import CALL_KEYS, Row, RowError, as_list, call_id, column_text, is_empty, text_of

# Names of the roles in known datasets.
ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "ai", "bot", "chatbot"), "assistant"),
    **dict.fromkeys(
        ("tool", "function", "observation", "tool_response", "tool_result", "function_response", "ipython"), "tool"
    ),
}
CALL_ROLES = ("function_call", "tool_call", "tool_calls")
_KNOWN_ROLES = frozenset((*ROLES, *CALL_ROLES))
_ROLE_KEYS = ("from", "role", "speaker")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")
_CALL_KEYS = ("tool_calls", "function_call", "tool_call")
_FLAGS = ("weight", "train", "train_on_turn", "loss", "trainable", "supervised")
_RECIPIENT_KEYS = ("metadata", "recipient", "to")
_RESULT_KEYS = ("tool_call_id", "call_id", "tool_use_id", "name", "tool_name")
_INSTEAD_OF_TEXT = (*_REASONING_KEYS, *_CALL_KEYS, "tools")
_TEXT_KEYS = ("value", "content", "message")
_TURN_KEYS: dict[str, frozenset[str]] = {
    "system": frozenset((*_ROLE_KEYS, "type", "tools")),
    "user": frozenset((*_ROLE_KEYS, "type")),
    "assistant": frozenset((*_ROLE_KEYS, *_REASONING_KEYS, *_CALL_KEYS, *_FLAGS, *_RECIPIENT_KEYS, "type")),
    "tool": frozenset((*_ROLE_KEYS, *_RESULT_KEYS, "type")),
}
_TOOL_COLUMNS = ("tools", "functions", "function", "available_tools")
# Keys that every format reads.
COMMON_KEYS = frozenset((*_TOOL_COLUMNS, "id", "category", "gold", "chat_template_kwargs"))
# Keys of rows whose turns are in one column.
CHAT_KEYS = COMMON_KEYS | {"messages", "conversations", "system", "system_prompt"}
_PART_KEYS = frozenset(
    (*CALL_KEYS, "text", "value", "content", "thinking", "reasoning", "tool_call", "function_call", "signature")
)
_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING_PARTS = ("reasoning", "thinking")
_CALL_PARTS = ("tool_call", "function_call")


def chat_reader(*columns: str) -> Reader:
    """A reader of the turns in the first filled column; the system text may be in a column of its own."""
    return lambda row: read_chat(row, turns_of(row, columns), system_column(row))


def objects_in(row: Row, *columns: str) -> list[dict[str, Any]]:
    """The objects in the list of the first filled column."""
    for name in columns:
        if row.get(name):
            return [value for value in decoded_list(row[name]) or [] if isinstance(value, dict)]
    return []


def turns_of(row: Row, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The turns of the first column that is filled; a text of JSON is decoded.

    Raises:
        RowError: If there are none, or one is not an object.
    """
    column = next((name for name in columns if row.get(name)), columns[0])
    turns = decoded_list(row.get(column))
    if turns is None:
        raise RowError(f"`{column}` is not a list of turns")
    if not turns:
        raise RowError(f"the row has no turns in `{column}`")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise RowError(f"turn {number} must be an object, not {type(turn).__name__}")
    return turns


def decoded_list(value: Any) -> list[Any] | None:
    """A list, also one that is written as JSON, or whose items are; None for anything else."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = as_list(value)
        except CallSyntaxError:
            return None
    if value is None:
        return []
    if not isinstance(value, list):
        return None
    if not value or not isinstance(value[0], str):
        return value
    try:
        return [as_list(item)[0] if isinstance(item, str) and item.startswith("{") else item for item in value]
    except CallSyntaxError:
        return None


def role_of(turn: Mapping[str, Any]) -> Any:
    """The row's name for the role of a turn."""
    role = turn.get("from") or turn.get("role") or turn.get("speaker") or None
    return role.lower() if isinstance(role, str) and role.lower() in _KNOWN_ROLES else role


def tools_of(row: Row) -> Any:
    """The value of the column with the available tools."""
    found = next((row[key] for key in _TOOL_COLUMNS if not is_empty(row.get(key))), None)
    extra = row.get("chat_template_kwargs")
    if found is None and isinstance(extra, Mapping):
        found = next(
            (extra[key] for key in ("xml_tools", "python_tools", "tools") if not is_empty(extra.get(key))), None
        )
    return found


def read_chat(
    row: Row, turns: Iterable[dict[str, Any]], system: str = "", is_verbatim: bool = False, has_schema: bool = False
) -> Conversation:
    """Read a row of chat turns."""
    builder = ConversationBuilder()
    builder.read_tools(tools_of(row))
    schema = row.get("schema") if has_schema else None
    if system:
        _add_system(builder, 0, system)
    raw_turns: list[tuple[str, str]] = []
    context_turns: list[int] = []
    for number, turn in enumerate(turns, 1):
        role = role_of(turn)
        if not isinstance(role, str) or (role not in ROLES and role not in CALL_ROLES):
            known = ", ".join([*ROLES, *CALL_ROLES])
            raise RowError(f"turn {number} has an unknown role, {role!r:.40}; known roles: {known}")
        key = next((key for key in _TEXT_KEYS if turn.get(key) is not None), "content")
        content = turn.get(key)
        if content is None and role not in CALL_ROLES and not any(turn.get(other) for other in _INSTEAD_OF_TEXT):
            builder.notices.append(("empty_turn", f"turn {number}: {role}"))
        builder.note_unread("turn", turn, _TURN_KEYS[ROLES.get(role, "assistant")] | {key})
        if is_verbatim:
            text = text_of(content, f"turn {number}: its text")
            if not is_supervised(turn, builder, number):
                context_turns.append(len(raw_turns))
            raw_turns.append(("model" if ROLES.get(role) == "assistant" else role, text))
            if has_schema and ROLES.get(role) == "system":
                schema = schema or next(iter(blocks(text, "schema")[0]), None)
        _read_turn(builder, number, role, turn, content)
    if schema and not builder.tools:
        builder.read_schema(schema)
    conversation = builder.build(row, raw_turns)
    return replace(conversation, context_turns=tuple(context_turns)) if context_turns else conversation


def _read_turn(builder: ConversationBuilder, number: int, name: str, turn: dict[str, Any], content: Any) -> None:
    if name in CALL_ROLES:
        calls, ids = builder.read_calls(number, content if turn.get("tool_calls") is None else turn["tool_calls"])
        if not calls and not any(defect.startswith(f"turn {number},") for defect in builder.defects):
            builder.defects.append(f"turn {number}: it contains no call")
        builder.add_assistant(number, "", None, calls, ids, is_supervised(turn, builder, number))
        return
    role = ROLES[name]
    if role == "tool" or (role == "user" and _is_response(content, builder)):
        _add_results(builder, number, turn, content)
        return
    text, thought, part_calls = read_parts(builder, number, content)
    if role == "system":
        if not builder.tools and not is_empty(turn.get("tools")):
            builder.read_tools(turn["tools"])
        _add_system(builder, number, text)
    elif role == "user":
        builder.add(number, role, text)
    else:
        _add_assistant(builder, number, turn, text, thought, part_calls)


def _add_assistant(
    builder: ConversationBuilder, number: int, turn: dict[str, Any], text: str, thought: str, part_calls: list[Any]
) -> None:
    given = {key: turn[key] for key in _REASONING_KEYS if not is_empty(turn.get(key))}
    builder.note_unread("turn", {key: value for key, value in given.items() if not isinstance(value, str)})
    thought = thought or next((value for value in given.values() if isinstance(value, str)), "")
    values = list(part_calls)
    for key in _CALL_KEYS:
        if is_empty(turn.get(key)):
            continue
        try:
            values += as_list(turn[key])
        except CallSyntaxError as problem:
            builder.defects.append(f"turn {number}, call 1: {problem}")
    for key in _RECIPIENT_KEYS:  # ChatGLM and Functionary: a turn to a tool, its content is the arguments
        name = turn[key].strip().removeprefix("functions.") if isinstance(turn.get(key), str) else ""
        if name and name in {tool.name for tool in builder.tools}:
            values, text = [{"name": name, "arguments": text}], ""
        elif not is_empty(turn.get(key)) and name not in ("all", "user"):
            builder.notices.append(("unread_key", f"turn.{key}"))
    calls, ids = builder.read_calls(number, values)
    if values and not calls:  # the defects say why
        builder.add_assistant(number, text or " ", thought, (), (), is_supervised(turn, builder, number))
        return
    builder.add_assistant(number, text, thought, calls, ids, is_supervised(turn, builder, number))


def is_supervised(turn: Mapping[str, Any], builder: ConversationBuilder, number: int) -> bool:
    """Whether a turn's flags leave it a training target."""
    if turn.keys().isdisjoint(_FLAGS):
        return True
    for key in _FLAGS:
        flag = turn.get(key)
        if isinstance(flag, str):
            flag = {"false": False, "0": 0, "true": True, "1": 1}.get(flag.lower())
        if isinstance(flag, bool | int | float):
            if flag not in (0, 1):
                builder.notices.append(("turn_weight", f"turn {number}: {key} {flag} is treated as 1"))
            if not flag:
                return False
    return True


def _add_system(builder: ConversationBuilder, number: int, text: str) -> None:
    rest, tools, problem = split_system(text, read=not builder.tools)
    builder.tools = builder.tools or tools
    if problem and not builder.tools:
        builder.defects.append(f"tools: {problem}")
    builder.add(number, "system", rest)


def _add_results(builder: ConversationBuilder, number: int, turn: dict[str, Any], content: Any) -> None:
    ids = (turn.get(key) for key in ("tool_call_id", "call_id", "tool_use_id"))
    found_id = next((str(value) for value in ids if value), "")
    name = next((turn[key] for key in ("name", "tool_name") if isinstance(turn.get(key), str)), "")
    if isinstance(content, str):
        responses, outside = blocks(content, "tool_response")
        if responses:
            if outside.strip():
                builder.defects.append(f"turn {number}: text outside of <tool_response>")
            for response in responses:
                builder.add_result(number, response, found_id if len(responses) == 1 else "", name)
            return
    elif isinstance(content, list) and content and all(_is_text_part(part) for part in content):
        content = read_parts(builder, number, content)[0]
    builder.add_result(number, content, found_id, name)


def _is_response(content: Any, builder: ConversationBuilder) -> bool:
    """Whether a user's turn holds nothing but the results of the calls before it."""
    if not isinstance(content, str) or not content.lstrip().startswith("<tool_response>"):
        return False
    after_calls = bool(builder.turns) and bool(builder.turns[-1].message.tool_calls)
    return after_calls and content.rstrip().endswith("</tool_response>")


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in _TEXT_PARTS


def read_parts(builder: ConversationBuilder, number: int, content: Any) -> tuple[str, str, list[Any]]:
    """Split a content (a text, a list of typed parts, or null) into text, reasoning and calls."""
    if content is None or isinstance(content, str):
        return text_of(content or "", f"turn {number}: its text"), "", []
    if isinstance(content, dict) and isinstance(content.get("type"), str):
        content = [content]
    if not isinstance(content, list):
        raise RowError(
            f"turn {number}: its content must be text, a list of parts or null, not {type(content).__name__}"
        )
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Any] = []
    for part in content:
        part = part if isinstance(part, dict) else {"text": part}
        kind = str(part.get("type") or "text")
        builder.note_unread("part", part, _PART_KEYS)
        value = next((part[key] for key in ("text", "value", "content", kind, "function") if part.get(key)), "")
        if kind in _CALL_PARTS:
            calls.append({**value, "id": call_id(part)} if isinstance(value, dict) else value or part)
        elif kind in _TEXT_PARTS:
            if not value and not {"text", "value", "content"} & part.keys():
                builder.defects.append(f"turn {number}: a part with the keys {', '.join(map(str, part))} is not text")
            texts.append(text_of(value, f"turn {number}: a part"))
        elif kind in _REASONING_PARTS:
            thoughts.append(text_of(value, f"turn {number}: a part"))
        else:
            builder.defects.append(f"turn {number}: a part of type {kind!r:.40} is neither text nor a call")
    return "\n".join(texts), "\n".join(thoughts), calls


def system_column(row: Row) -> str:
    """The system text that a row has in a column."""
    key = next((key for key in ("system", "system_prompt") if not is_empty(row.get(key))), "system")
    return column_text(row, key)
