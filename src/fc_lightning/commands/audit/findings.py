"""Findings: errors and possible errors in single rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jsonschema.exceptions import SchemaError, ValidationError
from referencing.exceptions import Unresolvable

from fc_lightning.conversation.json_schema import PatternError, schema_validator
from fc_lightning.conversation.parsing import dump_json
from fc_lightning.conversation.types import Conversation, ToolCall
from fc_lightning.conversation.value_matching import SearchableText, leaves, words
from fc_lightning.data.row_report import RowReport
from fc_lightning.data.splitting import near_duplicates, question

# The kinds of findings with their meaning, in the order in which they are shown.
KINDS = {
    "unreadable_source": "files that cannot be read at all",
    "no_calls": "sources without a single tool or call: is the format right?",
    "possible_call": "texts that look like a call but are read as an answer",
    "result_without_call": "tool results that belong to no call",
    "unanswered_call": "calls whose result is missing",
    "empty_turn": "turns without any text or value",
    "skipped": "rows that cannot be used",
    "flawed": "rows used verbatim although some of their calls cannot be read",
    "too_long": "rows longer than data.max_length",
    "cut": "rows cut after a turn",
    "unknown_tool": "calls to a tool that is not available",
    "missing_argument": "calls without a required argument",
    "bad_schema": "tools whose parameters are not a valid JSON schema",
    "invalid_argument": "arguments that fail their JSON schema",
    "ungrounded_value": "values none of whose words appear in the text before the call or in the tool's schema",
    "duplicate": "rows with the same content as an earlier one",
    "near_duplicate": "rows with almost the same question as an earlier one, and the same calls",
    "overlap": "evaluation rows that also appear, exactly or nearly, in the training data",
    "turn_weight": "turns with a weight between 0 and 1, or above 1",
    "unread_key": "keys of rows or turns that are not read",
    "reordered_results": "tool results that were reordered to match their calls",
    "chosen_side": "preference pairs whose rejected side is not used",
    "no_answer": "rows without an answer; a generated sentence without a call is used instead",
}
# Kinds that a strict audit accepts unless `data.audit_limits` has a limit for them.
INFORMATIVE = frozenset(("turn_weight", "unread_key", "reordered_results", "chosen_side", "no_answer"))
_MAX_SHOWN = 120  # characters of a value in a message


class Finding(NamedTuple):
    """One finding."""

    kind: str  # a key of :data:`KINDS`
    split: str
    place: str  # `file:row`
    id: str
    detail: str


IndexedTurn = Sequence[tuple[str, Conversation]]


def find(splits: Mapping[str, IndexedTurn], reports: Mapping[str, RowReport] | None = None) -> list[Finding]:
    """All findings, ordered by split and kind."""
    findings: list[Finding] = []
    for split, read in splits.items():
        if reports and split in reports:
            for kind in ("skipped", "flawed", "too_long", "cut"):
                findings += [Finding(kind, split, *case) for case in getattr(reports[split], kind)]
        findings += _unread_keys(split, read)
        for place, conversation in read:
            noticed = [notice for notice in conversation.notices if notice[0] != "unread_key"]
            for kind, detail in [*noticed, *_wrong_tools(conversation), *_wrong_calls(conversation)]:
                findings.append(Finding(kind, split, place, conversation.id, detail))
    findings += _repeated(splits)
    return sort_findings(findings, list(splits))


def sort_findings(findings: Sequence[Finding], splits: Sequence[str]) -> list[Finding]:
    """Order findings by split and kind."""
    order = list(KINDS)
    return sorted(findings, key=lambda one: (splits.index(one.split), order.index(one.kind)))


def _unread_keys(split: str, read: IndexedTurn) -> Iterator[Finding]:
    """One finding for each key that no reader uses, at its first row."""
    first: dict[str, tuple[str, str]] = {}
    counts: Counter[str] = Counter()
    for place, conversation in read:
        for key in {detail for kind, detail in conversation.notices if kind == "unread_key"}:
            first.setdefault(key, (place, conversation.id))
            counts[key] += 1
    for key, count in counts.most_common():
        yield Finding("unread_key", split, *first[key], f"{key} in {count:,} rows")


def _wrong_tools(conversation: Conversation) -> Iterator[tuple[str, str]]:
    for tool in conversation.tools:
        try:
            schema_validator(dump_json(tool.parameters))
        except SchemaError as error:
            yield "bad_schema", f"{tool.name}: {error.message[:_MAX_SHOWN]}"


def _wrong_calls(conversation: Conversation) -> Iterator[tuple[str, str]]:
    schemas = {tool.name: tool.parameters for tool in conversation.tools}
    said = ""
    for message in conversation.messages:
        text = SearchableText(said) if message.tool_calls else None
        for call in message.tool_calls:
            if call.name not in schemas:
                available = f"the available tools are {', '.join(schemas)}" if schemas else "no tools are available"
                yield "unknown_tool", f"{call.name} is called, but {available}"
                continue
            yield from _schema_errors(call, schemas[call.name])
            if text is not None:
                yield from _ungrounded(call, schemas[call.name], text)
        said += "\n" + "\n".join([message.content, *(dump_json(call.arguments) for call in message.tool_calls)])


def _schema_errors(call: ToolCall, schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    try:
        errors = list(schema_validator(dump_json(schema)).iter_errors(call.arguments))
    except SchemaError:
        return  # reported with the tool
    except PatternError as error:
        yield "bad_schema", f"{call.name}: {error}"[:_MAX_SHOWN]
        return
    except (RecursionError, Unresolvable) as error:
        yield "bad_schema", f"{call.name}: an unresolvable reference ({type(error).__name__})"
        return
    for one in errors:
        yield _kind_of(one), f"{call.name}{one.json_path[1:]}: {one.message[:_MAX_SHOWN]}"


def _kind_of(error: ValidationError) -> str:
    return "missing_argument" if error.validator == "required" else "invalid_argument"


def _ungrounded(call: ToolCall, schema: dict[str, Any], text: SearchableText) -> Iterator[tuple[str, str]]:
    offered = SearchableText(dump_json(schema))
    for name, value in call.arguments.items():
        for leaf in leaves(value):
            is_said = isinstance(leaf, bool) or leaf is None or (isinstance(leaf, str) and not words(leaf))
            if not is_said and not text.contains_part_of(leaf) and not offered.contains(leaf):
                yield "ungrounded_value", f"{call.name}.{name}: {dump_json(leaf)[:_MAX_SHOWN]}"


def _repeated(splits: Mapping[str, IndexedTurn]) -> Iterator[Finding]:
    """Duplicates and near-duplicates within a split, and overlap of an evaluation split with training."""
    rows = [(split, place, one) for split, read in splits.items() for place, one in read]
    groups = near_duplicates([question(one) for _, _, one in rows])
    exact: dict[tuple[str, object], str] = {}
    near: dict[tuple[str, object], str] = {}
    # Training first, so that the others are compared with all of it.
    for index in sorted(range(len(rows)), key=lambda index: rows[index][0] != "train"):
        split, place, one = rows[index]
        same = (tuple((m.role, m.content, m.tool_calls) for m in one.messages), _tools(one))
        similar = (groups[index], tuple(m.tool_calls for m in one.messages if m.role == "assistant"), _tools(one))
        if split != "train" and (("train", same) in exact or ("train", similar) in near):
            known = exact.get(("train", same))
            what = f"the same as {known}" if known else f"nearly the same as {near['train', similar]}"
            yield Finding("overlap", split, place, one.id, what)
        if (split, same) in exact:
            yield Finding("duplicate", split, place, one.id, f"the same as {exact[split, same]}")
        elif (split, similar) in near:
            yield Finding("near_duplicate", split, place, one.id, f"nearly the same as {near[split, similar]}")
        exact.setdefault((split, same), place)
        near.setdefault((split, similar), place)


def _tools(conversation: Conversation) -> tuple[str, ...]:
    return tuple(sorted(tool.name for tool in conversation.tools))
