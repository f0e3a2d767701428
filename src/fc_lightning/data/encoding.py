"""Encoding: renders and tokenizes conversations in batches, as documents and as prompts."""

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

_CHUNK_TEXT = 4_000_000  # characters per call of the tokenizer


@dataclass(frozen=True)
class EncodingSettings:
    """How conversations are encoded.

    Attributes:
        supervise: Supervised tokens: the model's turns, or all.
        thoughts: ``keep`` reasoning as it is, remove it (``none``), or add a rationale where it is missing
            (``template``). Canonical rendering only.
        thoughts_share: Share of the conversations that have reasoning; the others have none.
        max_length: Largest number of tokens of a document.
        too_long: ``drop`` a longer conversation, or ``cut`` it after the last model turn that fits.
        held_out: Share of the conversations that are held out for validation; near-duplicates stay together.
        subset: Which part to encode, ``kept`` or ``held_out``.
        prompts: Whether to encode a prompt for each model turn as well.
    """

    supervise: Supervise = "assistant"
    thoughts: Thoughts = "keep"
    thoughts_share: float = 1.0
    max_length: int = 2048
    too_long: Literal["drop", "cut"] = "drop"
    held_out: float = 0.0
    subset: Literal["kept", "held_out"] = "kept"
    prompts: bool = False


def encode_documents(
    chunk: Sequence[tuple[int, str, Conversation]],
    template: ChatTemplate,
    settings: EncodingSettings,
    report: RowReport,
) -> Iterator[dict[str, Any]]:
    """Encode conversations in one batch; those that are too long are cut or dropped."""
    rendered, entries = [], []
    for entry in chunk:
        conversation = entry[2]
        try:
            messages = template.messages(conversation)
            if not template.model_turns(messages):
                raise ChatTemplateError("the conversation has no model turn")
            text = template.render(messages, conversation)
        except ChatTemplateError as error:
            report.skipped.append((entry[1], conversation.id, str(error)))
            continue
        # No tokenizer could make it fit: skip encoding it.
        if settings.too_long == "drop" and len(text.text) > settings.max_length * template.longest_token:
            reason = f"{len(text.text):,} characters, `data.max_length` is {settings.max_length:,} tokens"
            report.too_long.append((entry[1], conversation.id, reason))
            continue
        rendered.append(text)
        entries.append(entry)
    for (source, place, conversation), encoded in zip(entries, _encode(rendered, template, settings), strict=True):
        fitting: Encoded | None = encoded
        if len(encoded.input_ids) > settings.max_length:
            reason = f"{len(encoded.input_ids):,} tokens, `data.max_length` is {settings.max_length:,}"
            fitting = _cut(conversation, template, settings) if settings.too_long == "cut" else None
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


def _cut(conversation: Conversation, template: ChatTemplate, settings: EncodingSettings) -> Encoded | None:
    """The conversation up to the last model turn that fits; None if the first does not."""
    messages = template.messages(conversation)

    def encode(last: int) -> Encoded:
        return template.encode([template.render(messages[: last + 1], conversation)], settings.supervise)[0]

    turns = template.model_turns(messages)
    fitting = bisect_right(turns, settings.max_length, key=lambda last: len(encode(last).input_ids))
    return encode(turns[fitting - 1]) if fitting else None


def _encode(rendered: Sequence[Rendered], template: ChatTemplate, settings: EncodingSettings) -> Iterator[Encoded]:
    """Encode in batches of bounded size."""
    group: list[Rendered] = []
    characters = 0
    for one in rendered:
        if group and characters + len(one.text) > _CHUNK_TEXT:
            yield from template.encode(group, settings.supervise)
            group, characters = [], 0
        group.append(one)
        characters += len(one.text)
    yield from template.encode(group, settings.supervise)


def encode_prompts(
    chunk: Sequence[tuple[int, str, Conversation]],
    template: ChatTemplate,
    settings: EncodingSettings,
    report: RowReport,
) -> Iterator[dict[str, Any]]:
    """Encode a prompt for each model turn, with the reference history. `max_length` does not apply to prompts."""
    rendered: list[Rendered] = []
    rows: list[dict[str, Any]] = []
    for _, place, conversation in chunk:
        messages = [] if conversation.defects else template.messages(conversation)
        schema = conversation.response_schema
        row: dict[str, Any] = {"id": conversation.id, "category": conversation.category}
        row["tools"] = dump_json([tool.to_openai() for tool in conversation.tools])
        row["response_schema"] = "" if schema is None else dump_json(schema)
        gold = dump_json(conversation.gold) if conversation.gold else ""
        if (length := len(dump_json(messages)) + len(row["tools"])) > settings.max_length * template.longest_token:
            report.too_long.append((place, conversation.id, f"{length:,} characters: too long for prompts"))
            continue
        for turn, index in enumerate(template.model_turns(messages)):
            rendered.append(template.render(messages[:index], conversation, generation_prompt=True))
            expected, answer = _expected(conversation, template, index)
            calls = [call.to_dict() for call in expected]
            row |= {"turn": turn, "expected": dump_json(calls), "gold": gold if calls else "", "answer": answer}
            rows.append(dict(row))
            gold = "" if calls else gold  # it belongs to the first turn with a call
    for row, encoded in zip(rows, _encode(rendered, template, settings), strict=True):
        report.prompts += 1
        yield {**row, "input_ids": encoded.input_ids}


def _expected(conversation: Conversation, template: ChatTemplate, index: int) -> tuple[tuple[ToolCall, ...], str]:
    """The calls of a model turn, and its text."""
    if template.render_mode == "canonical":
        return conversation.messages[index].tool_calls, conversation.messages[index].content
    turn = parse_turn(conversation.raw_turns[index][1])
    return turn.tool_calls, turn.content
