"""Collects a row's messages, pairs tool results with calls, and checks what cannot be written and read back."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fc_lightning.conversation.parsing import (
    CALL_CLOSE,
    CALL_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
    CallSyntaxError,
    parse_literal,
    parse_turn,
    render_turn,
    to_json_value,
)
from fc_lightning.conversation.types import Conversation, Message, Role, Tool, ToolCall
from fc_lightning.data.formats import values
from fc_lightning.data.formats.call_syntax import looks_like_call, parse_text, split_reasoning
from fc_lightning.data.formats.values import Row, is_empty, text_of


@dataclass(frozen=True)
class BuiltTurn:
    """A message while its conversation is built."""

    number: int  # the row's turn that it comes from, counted from 1
    message: Message  # the message
    # Of an assistant's turn the ids of its calls, empty texts where there are none; of a tool's turn its call's
    ids: tuple[str, ...] = ()
    name: str = ""  # of a tool's turn the name of the tool
    num_results: int = 1  # of a tool's turn the number of results in it


@dataclass
class ConversationBuilder:
    """Builds a conversation turn by turn."""

    turns: list[BuiltTurn] = field(default_factory=list)  # the turns so far
    tools: tuple[Tool, ...] = ()  # the available tools
    defects: list[str] = field(default_factory=list)  # what is wrong with the row, one sentence each
    # Kind and detail of what is unusual; see :class:`fc_lightning.conversation.types.Conversation`
    notices: list[tuple[str, str]] = field(default_factory=list)
    response_schema: dict[str, Any] | None = None  # the JSON schema of the answer, in JSON mode

    def add(self, number: int, role: Role, text: str) -> None:
        """Add a system, user or tool message; an empty system text is skipped."""
        if role != "system" or text.strip():
            text_of(text, f"turn {number}: its text")
            self.turns.append(BuiltTurn(number, Message(role, text.strip())))

    def add_result(self, number: int, content: Any, call_id: str = "", name: str = "") -> None:
        """Add a tool's result: a text as it is, any other value as JSON."""
        if content is None:
            content = ""
        if not isinstance(content, str):
            content = json.dumps(content, ensure_ascii=False)
        message = Message("tool", text_of(content, f"turn {number}: its text").strip())
        self.turns.append(BuiltTurn(number, message, (call_id,), name, _num_results(content)))

    def add_assistant(
        self,
        number: int,
        text: str,
        reasoning: str | None = None,
        calls: Sequence[ToolCall] = (),
        ids: Sequence[str] = (),
        supervised: bool = True,
    ) -> None:
        """Add an assistant turn; reasoning and calls in its text are read unless they are given.

        Consecutive turns are one turn of the model where the first only thinks, speaks or calls before the calls of the
        second: nothing would open a second turn after the end token.
        """
        if calls:
            inner, text = split_reasoning(text)
        else:
            parsed = parse_text(text, {tool.name: tool for tool in self.tools})
            self.defects += [f"turn {number}, {error}" for error in parsed.errors]
            if parsed.has_text_after_call:
                # The canonical form has text before the calls only; moving it there would change its meaning.
                self.defects.append(f"turn {number}: text after a call")
            inner, text, calls = parsed.reasoning, parsed.content, parsed.calls
            if not calls and looks_like_call(text):
                self.notices.append(("possible_call", f"turn {number}: {text[:80]}"))
        reasoning = (reasoning or "").strip() or (inner or "").strip() or None
        text_of(reasoning or "", f"turn {number}: its reasoning")
        message = Message("assistant", text.strip(), reasoning, tuple(calls), supervised)
        ids = (*ids, *[""] * (len(calls) - len(ids)))
        before = self.turns[-1] if self.turns else None
        if before is not None and _continues(before.message, message):
            self.turns.pop()
            message = _joined(before.message, message)
            ids = (*before.ids, *ids)
        self.turns.append(BuiltTurn(number, message, ids))

    def read_tools(self, value: Any, python_types: bool = False) -> None:
        """Read the available tools; tools that cannot be read are a defect."""
        try:
            self.tools = values.read_tools(value, python_types, self.note_unread)
        except CallSyntaxError as problem:
            self.defects.append(f"tools: {problem}")

    def read_schema(self, value: Any) -> None:
        """Read the JSON schema of the answer, an object or a text of one."""
        try:
            schema = parse_literal(value) if isinstance(value, str) else to_json_value(value)
        except CallSyntaxError as problem:
            self.defects.append(f"schema: {problem}")
            return
        if isinstance(schema, dict):
            self.response_schema = schema
        else:
            self.defects.append(f"schema: it must be an object, not {type(schema).__name__}")

    def read_calls(self, number: int, value: Any) -> tuple[tuple[ToolCall, ...], tuple[str, ...]]:
        """Read the calls of a turn, one or a list, objects or texts, with their ids; unreadable ones are defects."""
        calls: list[ToolCall] = []
        ids: list[str] = []
        try:
            items = values.as_list(value)
        except CallSyntaxError as problem:
            self.defects.append(f"turn {number}, call 1: {problem}")
            return (), ()
        for index, item in enumerate(items, 1):
            try:
                calls.append(values.read_call(item))
                ids.append(values.call_id(item))
                if isinstance(item, dict):
                    function = item["function"] if isinstance(item.get("function"), dict) else {}
                    self.note_unread("call", {**item, **function}, values.CALL_KEYS)
            except CallSyntaxError as problem:
                self.defects.append(f"turn {number}, call {index}: {problem}")
        return tuple(calls), tuple(ids)

    def note_unread(self, where: str, value: Row, known: frozenset[str] = frozenset()) -> None:
        """Note the keys of an object that have a value and are not read."""
        if unread := value.keys() - known:
            self.notices += [("unread_key", f"{where}.{key}") for key in sorted(unread) if not is_empty(value[key])]

    def build(self, row: Row, raw_turns: list[tuple[str, str]] | None = None) -> Conversation:
        """Make the conversation; a message that cannot be written and read back is a defect."""
        tools = {tool.name: tool for tool in self.tools}
        self.turns = [_without_filled_nulls(turn, tools) if turn.message.tool_calls else turn for turn in self.turns]
        self._pair_results()
        self.defects += turn_defects([(turn.number, turn.message) for turn in self.turns], self.defects)
        gold = self._read_gold(row.get("gold"))
        row_id, category = row.get("id"), row.get("category")
        return Conversation(
            id=text_of(str(row_id), "`id`") if isinstance(row_id, str | int) and row_id is not True else "",
            messages=tuple(turn.message for turn in self.turns),
            tools=self.tools,
            category=text_of(category, "`category`") if isinstance(category, str) else "",
            raw_turns=tuple(raw_turns or ()),
            defects=tuple(self.defects),
            gold=gold,
            response_schema=self.response_schema,
            notices=tuple(dict.fromkeys(self.notices)),
        )

    def _pair_results(self) -> None:
        """Put tool results in the order of their calls, and note calls and results without a counterpart."""
        index = 0
        while index < len(self.turns):
            turn = self.turns[index]
            end = index + 1
            while end < len(self.turns) and self.turns[end].message.role == "tool":
                end += 1
            results = self.turns[index + 1 : end]
            if turn.message.role == "tool":  # the row begins with a result
                self.notices.append(("result_without_call", f"turn {turn.number}"))
            elif results or turn.message.tool_calls:
                is_last = end == len(self.turns)
                self.turns[index + 1 : end] = self._in_order(turn, results, is_last)
            index = end

    def _in_order(self, turn: BuiltTurn, results: list[BuiltTurn], is_last: bool) -> list[BuiltTurn]:
        calls = turn.message.tool_calls
        positions = _positions(turn, results)
        unknown = [one for one, position in zip(results, positions, strict=True) if position is None]
        self.notices += [("result_without_call", f"turn {one.number}: {one.ids[0] or one.name}") for one in unknown]
        num_results = sum(one.num_results for one in results)
        if not unknown and num_results > len(calls) and all(one.num_results == 1 for one in results):
            self.notices.append(
                ("result_without_call", f"turn {turn.number}: {len(calls)} calls, {num_results} results")
            )
        if num_results - len(unknown) < len(calls) and (results or not is_last):
            self.notices.append(("unanswered_call", f"turn {turn.number}: {len(calls)} calls, {num_results} results"))
        order = sorted(range(len(results)), key=lambda n: len(calls) if positions[n] is None else positions[n] or 0)
        if order != list(range(len(results))):
            self.notices.append(("reordered_results", f"turn {turn.number}"))
        return [results[n] for n in order]

    def _read_gold(self, value: Any) -> tuple[dict[str, Any], ...]:
        """Read each call's accepted values, ``{name: {argument: [value, …]}}`` as the Berkeley leaderboard has them."""
        try:
            calls = to_json_value(values.as_list(value))
        except CallSyntaxError as problem:
            self.defects.append(f"gold: {problem}")
            return ()
        for call in calls:
            arguments = next(iter(call.values())) if isinstance(call, dict) and len(call) == 1 else None
            if not isinstance(arguments, dict) or not all(
                isinstance(accepted, list) for accepted in arguments.values()
            ):
                self.defects.append("gold: a call is {name: {argument: [accepted value, …]}}")
                return ()
        return tuple(calls)


def turn_defects(turns: Sequence[tuple[int, Message]], known: Sequence[str] = ()) -> list[str]:
    """What keeps numbered messages from being a conversation that can be written and read back.

    Turns with a known defect are skipped: one sentence per turn is enough.
    """
    defects: list[str] = []
    role_before = ""
    flawed = {re.split("[:,]", defect, maxsplit=1)[0] for defect in known}
    for index, (number, message) in enumerate(turns):
        problem = _problem(message) if message.role == "assistant" else ""
        if message.role == "system" and index:
            problem = "a system message that is not the first"
        elif message.role == role_before == "assistant":
            problem = problem or "an assistant turn directly after another one"
        if problem and f"turn {number}" not in flawed:
            defects.append(f"turn {number}: {problem}")
        role_before = message.role
    return defects


def _without_filled_nulls(turn: BuiltTurn, tools: dict[str, Tool]) -> BuiltTurn:
    calls = tuple(values.drop_filled_nulls(call, tools) for call in turn.message.tool_calls)
    if all(map(operator.is_, calls, turn.message.tool_calls)):
        return turn
    return replace(turn, message=replace(turn.message, tool_calls=calls))


def _continues(first: Message, second: Message) -> bool:
    """Whether an assistant turn is the beginning of the one directly after it."""
    if first.role != "assistant" or first.supervised != second.supervised:
        return False
    only_thinks = not first.content and not first.tool_calls and first.reasoning is not None
    calls_on = bool(second.tool_calls) and not second.content and second.reasoning is None
    return calls_on or (only_thinks and second.reasoning is None)


def _joined(first: Message, second: Message) -> Message:
    return replace(first, content=first.content or second.content, tool_calls=(*first.tool_calls, *second.tool_calls))


def _num_results(content: str) -> int:
    """The number of results in a tool message: some sources put those of all calls into one list."""
    if not content.lstrip().startswith("["):
        return 1
    try:
        items = json.loads(content)
    except (ValueError, RecursionError):
        return 1
    is_list_of_results = isinstance(items, list) and all(isinstance(item, dict) and "name" in item for item in items)
    return len(items) if is_list_of_results and items else 1


def _positions(turn: BuiltTurn, results: list[BuiltTurn]) -> list[int | None]:
    """For each result the index of its call; None where it names a call that there is not."""
    calls = turn.message.tool_calls
    if not calls:
        return [None] * len(results)
    if any(turn.ids) and any(result.ids[0] for result in results):
        by_id = {call_id: index for index, call_id in enumerate(turn.ids)}
        free = set(range(len(calls))) - {by_id.get(result.ids[0]) for result in results}
        only = free.pop() if len(free) == 1 else None  # the call of a result without an id
        return [by_id.get(result.ids[0], None if result.ids[0] else only) for result in results]
    names = [call.name for call in calls]
    if len(set(names)) == len(names) > 1 and sorted(result.name for result in results) == sorted(names):
        return [names.index(result.name) for result in results]
    return list(range(len(results)))


def _problem(message: Message) -> str:
    """Why an assistant message cannot be written and read back; empty if it can."""
    for where, text, tags in (
        ("text", message.content, (CALL_OPEN, CALL_CLOSE, THINK_OPEN, THINK_CLOSE)),
        ("reasoning", message.reasoning or "", (THINK_OPEN, THINK_CLOSE)),
    ):
        if tag := next((tag for tag in tags if tag in text), ""):
            return f"its {where} contains the tag {tag}"
    if not message.content and not message.tool_calls:
        return "neither an answer nor a call"
    turn = parse_turn(render_turn(message))
    read_back = Message("assistant", turn.content, turn.reasoning, turn.tool_calls, message.supervised)
    return "" if read_back == message and not turn.errors else "it reads differently in canonical form"
