"""Documents and prompts: conversations rendered and encoded, many at once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from fc_lightning.chat_template.template import ChatTemplate, ChatTemplateError, Encoded, Rendered, Supervise
from fc_lightning.conversation.parsing import dump_json, parse_turn
from fc_lightning.conversation.types import Conversation, ToolCall
from fc_lightning.data.collator import Document
from fc_lightning.data.reasoning import Thoughts
from fc_lightning.data.row_report import RowReport

_CHUNK_TEXT = 4_000_000  # characters that are encoded in one call of the tokenizer


@dataclass(frozen=True)
class Preparation:
    """How conversations become documents.

    Attributes:
        supervise: What is learned: the model's turns, or every token.
        thoughts: ``keep`` what the rows have, ``none``: take it away, or ``template``: add a rationale where there is
            none. Canonical rendering only.
        thoughts_share: Share of the conversations that are to have thoughts; the others have none.
        max_length: Tokens that a document may have.
        too_long: What becomes of a longer one: ``drop`` it, or ``cut`` it behind the last model turn that fits.
        held_out: Share of the conversations that are held out for validation; near-copies go together.
        side: Which part this is, ``kept`` or ``held_out``.
        prompts: Whether to make a prompt of each model turn too, to generate from.
    """

    supervise: Supervise = "assistant"
    thoughts: Thoughts = "keep"
    thoughts_share: float = 1.0
    max_length: int = 2048
    too_long: Literal["drop", "cut"] = "drop"
    held_out: float = 0.0
    side: Literal["kept", "held_out"] = "kept"
    prompts: bool = False


def documents_of(
    chunk: Sequence[tuple[int, str, Conversation]], template: ChatTemplate, how: Preparation, report: RowReport
) -> Iterator[dict[str, Any]]:
    """Encode conversations, all in one go; long ones are cut or left out."""
    rendered, entries = [], []
    for entry in chunk:
        conversation = entry[2]
        try:
            messages = template.messages(conversation)
            if not template.model_turns(messages):
                raise ChatTemplateError("no turn of the model in it")
            text = template.render(messages, conversation)
        except ChatTemplateError as error:
            report.skipped.append((entry[1], conversation.id, str(error)))
            continue
        # No tokenizer can make it fit: it is not even encoded.
        if how.too_long == "drop" and len(text.text) > how.max_length * template.longest_token:
            reason = f"{len(text.text):,} characters, `data.max_length` is {how.max_length:,} tokens"
            report.too_long.append((entry[1], conversation.id, reason))
            continue
        rendered.append(text)
        entries.append(entry)
    for (source, place, conversation), encoded in zip(entries, _encode(rendered, template, how), strict=True):
        fitting: Encoded | None = encoded
        if len(encoded.input_ids) > how.max_length:
            reason = f"{len(encoded.input_ids):,} tokens, `data.max_length` is {how.max_length:,}"
            fitting = _cut(conversation, template, how) if how.too_long == "cut" else None
            (report.too_long if fitting is None else report.cut).append((place, conversation.id, reason))
        if fitting is not None:
            report.documents += 1
            report.tokens += len(fitting.input_ids)
            report.supervised += sum(last - first for first, last in fitting.supervised_spans)
            row = Document(
                id=conversation.id,
                input_ids=fitting.input_ids,
                supervised=[*chain.from_iterable(fitting.supervised_spans)],
            )
            yield {**row, "source": source, "category": conversation.category, "place": place}


def _cut(conversation: Conversation, template: ChatTemplate, how: Preparation) -> Encoded | None:
    """The conversation up to the last model turn with which it still fits; None if not even the first does."""
    messages = template.messages(conversation)

    def encode(last: int) -> Encoded:
        return template.encode([template.render(messages[: last + 1], conversation)], how.supervise)[0]

    turns = template.model_turns(messages)
    fitting = bisect_right(turns, how.max_length, key=lambda last: len(encode(last).input_ids))
    return encode(turns[fitting - 1]) if fitting else None


def _encode(rendered: Sequence[Rendered], template: ChatTemplate, how: Preparation) -> Iterator[Encoded]:
    """Encode in as few calls of the tokenizer as memory allows."""
    group: list[Rendered] = []
    characters = 0
    for one in rendered:
        if group and characters + len(one.text) > _CHUNK_TEXT:
            yield from template.encode(group, how.supervise)
            group, characters = [], 0
        group.append(one)
        characters += len(one.text)
    yield from template.encode(group, how.supervise)


def prompts_of(
    chunk: Sequence[tuple[int, str, Conversation]], template: ChatTemplate, how: Preparation, report: RowReport
) -> Iterator[dict[str, Any]]:
    """A prompt for each model turn, with the true history before it. `max_length` is for training, not for these."""
    rendered: list[Rendered] = []
    rows: list[dict[str, Any]] = []
    for _, place, conversation in chunk:
        messages = [] if conversation.defects else template.messages(conversation)
        schema = conversation.response_schema
        row: dict[str, Any] = {"id": conversation.id, "category": conversation.category}
        row["tools"] = dump_json([tool.to_openai() for tool in conversation.tools])
        row["response_schema"] = "" if schema is None else dump_json(schema)
        gold = dump_json(conversation.gold) if conversation.gold else ""
        if (length := len(dump_json(messages)) + len(row["tools"])) > how.max_length * template.longest_token:
            report.too_long.append((place, conversation.id, f"{length:,} characters: makes no prompts"))
            continue
        for turn, index in enumerate(template.model_turns(messages)):
            rendered.append(template.render(messages[:index], conversation, generation_prompt=True))
            expected, answer = _expected(conversation, template, index)
            calls = [call.to_dict() for call in expected]
            row |= {"turn": turn, "expected": dump_json(calls), "gold": gold if calls else "", "answer": answer}
            rows.append(dict(row))
            gold = "" if calls else gold  # it belongs to the first turn that calls
    for row, encoded in zip(rows, _encode(rendered, template, how), strict=True):
        report.prompts += 1
        yield {**row, "input_ids": encoded.input_ids}


def _expected(conversation: Conversation, template: ChatTemplate, index: int) -> tuple[tuple[ToolCall, ...], str]:
    """The calls of a model turn, and its text beside them."""
    if template.render_mode == "canonical":
        return conversation.messages[index].tool_calls, conversation.messages[index].content
    turn = parse_turn(conversation.raw_turns[index][1])
    return turn.tool_calls, turn.content
