"""Encoding: renders and tokenizes conversations in batches, as documents and as prompts."""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

from fc_lightning.chat_template.template import ChatTemplate, ChatTemplateError, Encoded, Rendered, Supervise
from fc_lightning.chat_template.token_parts import supervised_parts
from fc_lightning.conversation.parsing import dump_json, parse_turn
from fc_lightning.conversation.types import Conversation, Message, ToolCall
from fc_lightning.data.augmentation import Augmentation, Perturbation, augment, perturb
from fc_lightning.data.collator import Document
from fc_lightning.data.files import DataError
from fc_lightning.data.reasoning import Thoughts, add_reasoning
from fc_lightning.data.request_joining import is_joinable
from fc_lightning.data.row_report import RowReport
from fc_lightning.data.tool_pool import ToolPool

_CHUNK_TEXT = 4_000_000  # characters per call of the tokenizer


@dataclass(frozen=True)
class EncodingSettings:
    """How conversations are encoded."""

    supervise: Supervise = "assistant"  # supervised tokens: the model's turns, or all
    # `keep` reasoning as it is, remove it (`none`), or add a rationale where it is missing (`template`). Canonical
    # rendering only
    thoughts: Thoughts = "keep"
    thoughts_share: float = 1.0  # fraction of conversations that have reasoning; the others have none
    max_length: int = 2048
    # `drop` a longer conversation, or `cut` it after the last model turn that fits
    too_long: Literal["drop", "cut"] = "drop"
    held_out: float = 0.0  # fraction of conversations that are held out for validation; near-duplicates stay together
    subset: Literal["kept", "held_out"] = "kept"  # which part to encode, `kept` or `held_out`
    prompts: bool = False  # whether to encode a prompt for each model turn as well
    augmentation: Augmentation | None = None  # augmentation of training rows; None leaves them unchanged
    seed: int | None = None
    epoch: int = 0  # the epoch that rows are augmented for
    # Names of perturbations; each perturbed conversation is encoded as prompts too
    perturbations: tuple[Perturbation, ...] = ()
    token_parts: bool = False  # whether documents say what each of their supervised tokens is
    pairs: bool = False  # whether documents carry the rejected turns of their rows

    def __post_init__(self) -> None:
        for name, share in (("thoughts_share", self.thoughts_share), ("validation", self.held_out)):
            if not 0 <= share <= 1:
                raise DataError(f"`data.{name}`: must be between 0 and 1, not {share}")


def encode_documents(
    chunk: Sequence[tuple[int, str, Conversation]],
    template: ChatTemplate,
    settings: EncodingSettings,
    report: RowReport,
) -> Iterator[dict[str, Any]]:
    """Encode conversations in one batch; those that are too long are cut or dropped."""
    rendered, entries = [], []
    for source, place, original in chunk:
        conversation = add_reasoning(original, settings.thoughts, settings.thoughts_share)
        try:
            messages = template.messages(conversation)
            if not template.model_turns(messages):
                raise ChatTemplateError("the conversation has no model turn")
            if not any(messages[index].get("supervised", True) for index in template.model_turns(messages)):
                raise ChatTemplateError("the flags of its turns leave nothing to supervise")
            text = template.render(messages, conversation)
        except ChatTemplateError as error:
            report.skipped.append((place, conversation.id, str(error)))
            continue
        # No tokenizer could make it fit: skip encoding it.
        if settings.too_long == "drop" and len(text.text) > settings.max_length * template.longest_token:
            reason = f"{len(text.text):,} characters, but `data.max_length` is {settings.max_length:,} tokens"
            report.too_long.append((place, conversation.id, reason))
            continue
        rendered.append(text)
        entries.append((source, place, conversation))
    encodings = zip(entries, rendered, _encode(rendered, template, settings), strict=True)
    for (source, place, conversation), text, encoded in encodings:
        fitting: tuple[Rendered, Encoded] | None = (text, encoded)
        if len(encoded.input_ids) > settings.max_length:
            reason = f"{len(encoded.input_ids):,} tokens, but `data.max_length` is {settings.max_length:,}"
            fitting = _cut(conversation, template, settings) if settings.too_long == "cut" else None
            (report.too_long if fitting is None else report.cut).append((place, conversation.id, reason))
        if fitting is not None:
            row = _document(conversation.id, *fitting, template, settings)
            if settings.pairs and conversation.rejected is not None and fitting == (text, encoded):
                too_long = _add_rejected(row, conversation, conversation.rejected, template, settings)
                report.cut += [(place, conversation.id, too_long)] if too_long else []
            report.documents += 1
            report.tokens += len(row["input_ids"])
            report.supervised += sum(last - first for first, last in fitting[1].supervised_spans)
            yield {**row, "source": source, "category": conversation.category, "place": place}


def augment_documents(
    documents: Sequence[dict[str, Any]],
    chunk: Sequence[tuple[int, str, Conversation]],
    template: ChatTemplate,
    settings: EncodingSettings,
) -> list[dict[str, Any]]:
    """The documents of a block of rows, with the augmented documents of the epoch in place of the plain ones.

    A row whose augmented document is too long keeps its plain one: augmentation drops no row.
    """
    if settings.augmentation is None:
        return list(documents)
    pool = ToolPool.for_template([conversation for _, _, conversation in chunk], template)
    joinable = [conversation for _, _, conversation in chunk if is_joinable(conversation)]
    varied = []
    for source, place, conversation in chunk:
        augmented = augment(conversation, settings.augmentation, pool, settings.seed, settings.epoch, joinable)
        if augmented is not conversation:
            varied.append((source, place, augmented))
    encoded = encode_documents(varied, template, replace(settings, too_long="drop"), RowReport())
    pairs = {(source, place) for source, place, one in varied if settings.pairs and one.rejected is not None}
    # Configurations of one dataset have the same places.
    keyed = [((one["source"], one["place"]), one) for one in encoded]
    by_row = {row: one for row, one in keyed if row not in pairs or one.get("rejected_ids")}
    return [by_row.get((document["source"], document["place"]), document) for document in documents]


def _document(
    id: str, rendered: Rendered, encoded: Encoded, template: ChatTemplate, settings: EncodingSettings
) -> Document:
    row = Document(id=id, input_ids=encoded.input_ids, supervised=[*chain.from_iterable(encoded.supervised_spans)])
    if settings.token_parts:
        row["parts"] = supervised_parts(rendered, encoded, _turn_ends(template), template.syntax)
    return row


@functools.lru_cache(1)  # the vocabulary is copied for it
def _turn_ends(template: ChatTemplate) -> list[str]:
    return list(template.tokenizer.convert_ids_to_tokens(template.end_ids(template.tokenizer, template.syntax)))


def _add_rejected(
    row: Document, conversation: Conversation, rejected: Message, template: ChatTemplate, settings: EncodingSettings
) -> str:
    """Add the conversation with its rejected turn to its document; returns why, if it is too long."""
    other = replace(conversation, messages=(*conversation.messages[:-1], rejected))
    other = add_reasoning(other, settings.thoughts, settings.thoughts_share)
    encoded = template.encode([template.render(template.messages(other), other)], settings.supervise)[0]
    if (length := len(row["input_ids"]) + len(encoded.input_ids)) > settings.max_length:
        return f"{length:,} tokens with its rejected turn, which is skipped"
    row["rejected_ids"], row["rejected_supervised"] = encoded.input_ids, [*encoded.supervised_spans[-1]]
    return ""


def _cut(
    conversation: Conversation, template: ChatTemplate, settings: EncodingSettings
) -> tuple[Rendered, Encoded] | None:
    """The conversation up to the last model turn that fits; None if the first does not."""
    messages = template.messages(conversation)

    def encode(last: int) -> tuple[Rendered, Encoded]:
        rendered = template.render(messages[: last + 1], conversation)
        return rendered, template.encode([rendered], settings.supervise, settings.token_parts)[0]

    turns = template.model_turns(messages)
    fitting = bisect_right(turns, settings.max_length, key=lambda last: len(encode(last)[1].input_ids))
    return encode(turns[fitting - 1]) if fitting else None


def _encode(rendered: Sequence[Rendered], template: ChatTemplate, settings: EncodingSettings) -> Iterator[Encoded]:
    """Encode in batches of bounded size."""
    group: list[Rendered] = []
    characters = 0
    for one in rendered:
        if group and characters + len(one.text) > _CHUNK_TEXT:
            yield from template.encode(group, settings.supervise, settings.token_parts)
            group, characters = [], 0
        group.append(one)
        characters += len(one.text)
    yield from template.encode(group, settings.supervise, settings.token_parts)


def encode_prompts(
    chunk: Sequence[tuple[int, str, Conversation]],
    template: ChatTemplate,
    settings: EncodingSettings,
    report: RowReport,
) -> Iterator[dict[str, Any]]:
    """Encode a prompt for each model turn, with the reference history. `max_length` does not apply to prompts.

    Rows that cannot be rendered are reported as skipped. Prompts of perturbed conversations come after all others.
    """
    yield from _prompts(chunk, template, settings, report)
    if not settings.perturbations:
        return
    pool = ToolPool.for_template([conversation for _, _, conversation in chunk], template)
    for name in settings.perturbations:
        candidates = ((source, place, perturb(conversation, name, pool)) for source, place, conversation in chunk)
        perturbed = [(source, place, one) for source, place, one in candidates if one is not None]
        counts = RowReport()  # a row is reported once, unperturbed
        yield from _prompts(perturbed, template, settings, counts, name)
        report.prompts += counts.prompts


def _prompts(
    chunk: Sequence[tuple[int, str, Conversation]],
    template: ChatTemplate,
    settings: EncodingSettings,
    report: RowReport,
    perturbation: str = "",
) -> Iterator[dict[str, Any]]:
    rendered: list[Rendered] = []
    rows: list[dict[str, Any]] = []
    for _, place, original in chunk:
        conversation = add_reasoning(original, settings.thoughts, settings.thoughts_share)
        try:
            messages = [] if conversation.defects else template.messages(conversation)
        except ChatTemplateError as error:
            report.skipped.append((place, conversation.id, str(error)))
            continue
        schema = conversation.response_schema
        row: dict[str, Any] = {"id": conversation.id, "category": conversation.category, "perturbation": perturbation}
        row["tools"] = dump_json([tool.to_openai() for tool in conversation.tools])
        row["response_schema"] = "" if schema is None else dump_json(schema)
        gold = dump_json(conversation.gold) if conversation.gold else ""
        if (length := len(dump_json(messages)) + len(row["tools"])) > settings.max_length * template.longest_token:
            report.too_long.append((place, conversation.id, f"{length:,} characters: too long for prompts"))
            continue
        turns = list(enumerate(template.model_turns(messages)))
        for turn, index in turns[-1:] if perturbation == "drop_tool" else turns:  # it changes the last turn only
            if not messages[index].get("supervised", True):
                continue
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
