"""Preparation: rows become encoded documents and prompts, once, and are kept as Arrow files for every later run.

A prepared folder is named by a fingerprint over all that went into it: rows, tokenizer, template, lengths.
"""

from __future__ import annotations

import json
import os
import shutil
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from datasets import Dataset
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_info

from fc_lightning.chat_template import ChatTemplate, ChatTemplateError, Encoded, Rendered, Supervise
from fc_lightning.data.cache import digest_of_texts, is_sound, read_digests, seal, telling
from fc_lightning.data.report import Report
from fc_lightning.data.sources import DataError, Row, Source, brief, default_id
from fc_lightning.data.splitting import hold_out, question
from fc_lightning.formats import RowError
from fc_lightning.packing import Document
from fc_lightning.thoughts import Thoughts, with_thoughts
from fc_lightning.toolcalls import Conversation, ToolCall, dump_json, parse_turn

_VERSION = 6  # of the layout below; a change makes old prepared folders unknown
_CHUNK = 512  # conversations that are encoded in one call of the tokenizer, as long as
_CHUNK_TEXT = 4_000_000  # they have not more characters together
_IDS = pa.list_(pa.int32())
_DOCUMENTS = pa.schema(
    {"id": pa.string(), "source": pa.int32(), "category": pa.string(), "input_ids": _IDS, "supervised": _IDS}
)
_PROMPTS = pa.schema(
    {
        **{"id": pa.string(), "turn": pa.int32(), "category": pa.string(), "input_ids": _IDS, "expected": pa.string()},
        **{"tools": pa.string(), "gold": pa.string(), "response_schema": pa.string(), "answer": pa.string()},
    }
)


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


@dataclass(frozen=True)
class Prepared:
    """A prepared data set.

    Attributes:
        documents: Rows ``id, source, category, input_ids, supervised``, see :class:`fc_lightning.packing.Document`.
        prompts: Rows ``id, turn, category, input_ids, expected, tools, gold, response_schema, answer``, see
            :class:`fc_lightning.data.batches.PromptBatch`.
        report: What became of the rows.
        digest: Of the documents, wherever their rows came from.
    """

    documents: Dataset
    prompts: Dataset
    report: Report
    digest: str


def fingerprint(sources: Sequence[Source], template: ChatTemplate, how: Preparation) -> str:
    """Changes whenever the documents may."""
    return digest_of_texts([digest_of(template, how), *(source.fingerprint() for source in sources)])[:24]


def digest_of(template: ChatTemplate, how: Preparation) -> str:
    """Changes whenever the same rows may become other documents."""
    settings = json.dumps([_VERSION, asdict(how), template.render_mode, template.source])
    return digest_of_texts([settings, template.tokenizer.backend_tokenizer.to_str()])


def prepare(sources: Sequence[Source], template: ChatTemplate, how: Preparation, folder: Path) -> None:
    """Write a prepared folder, unless it is there already, undamaged. It appears whole or not at all.

    Raises:
        DataError: If no row can be used, or the folder cannot be written.
    """
    if is_sound(folder):
        return
    with telling(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if is_sound(folder):
                return
            if folder.exists():
                rank_zero_info(f"{folder}: damaged; the data is prepared anew")
                shutil.rmtree(folder)
            partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                report = _write(sources, template, how, partial)
                (partial / "report.json").write_text(json.dumps(asdict(report)), encoding="utf-8")
                seal(partial)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)


def load_prepared(folder: Path) -> Prepared:
    """Open a prepared folder; its files are mapped into memory, not read, and nothing else there is looked at.

    Raises:
        DataError: If somebody has put something else there.
    """
    try:
        report = Report(**json.loads((folder / "report.json").read_text(encoding="utf-8")))
        parts = []
        for name, schema in (("documents", _DOCUMENTS), ("prompts", _PROMPTS)):
            with pa.memory_map(str(folder / f"{name}.arrow")) as file:
                if pa.ipc.open_stream(file).schema != schema:
                    raise ValueError(f"{name}.arrow has other columns")
            parts.append(Dataset.from_file(str(folder / f"{name}.arrow")))
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder}: is no prepared data ({error}); remove the folder") from error
    return Prepared(parts[0], parts[1], report, read_digests(folder)["documents.arrow"])


def read_conversations(
    sources: Sequence[Source], template: ChatTemplate, how: Preparation, report: Report
) -> Iterator[tuple[int, str, Conversation]]:
    """The usable conversations, each with the number of its source and its place; the others go into the report."""

    def rows() -> Iterator[tuple[int, str, Row]]:
        return ((number, place, row) for number, source in enumerate(sources) for place, row in source.rows())

    if not how.held_out:
        yield from usable(rows(), sources, template, how, report)
        return
    # What is held out hangs on all conversations, so they are read twice.
    read = (sources[number].read(row, place) for number, place, row in rows())
    questions = [question(one) for one in read if isinstance(one, Conversation)]
    yield from usable(rows(), sources, template, how, report, iter(hold_out(questions, how.held_out)))


def usable(
    rows: Iterable[tuple[int, str, Row]],
    sources: Sequence[Source],
    template: ChatTemplate,
    how: Preparation,
    report: Report,
    held_out: Iterator[bool] | None = None,
) -> Iterator[tuple[int, str, Conversation]]:
    """Those of the rows that can be used; the others go into the report.

    Args:
        rows: The number of the source, the place and the row.
        sources: Give the rows' formats.
        template: Renders; verbatim rendering needs no calls that can be read.
        how: What is wanted.
        report: Is added to.
        held_out: For each conversation that can be read, whether it is held out; only those of ``how.side`` are given.
    """
    for number, place, row in rows:
        report.rows += 1
        conversation = sources[number].read(row, place)
        if isinstance(conversation, RowError):
            row_id = row.get("id") if isinstance(row, dict) else None
            report.skipped.append((place, brief(str(row_id or default_id(place))), brief(str(conversation))))
            continue
        if held_out is not None and next(held_out) != (how.side == "held_out"):
            report.rows -= 1
            continue
        if conversation.defects:
            flaw = (place, conversation.id, brief("; ".join(conversation.defects)))
            if template.render_mode == "canonical":
                report.skipped.append(flaw)
                continue
            report.flawed.append(flaw)
        yield number, place, with_thoughts(conversation, how.thoughts, how.thoughts_share)


def _write(sources: Sequence[Source], template: ChatTemplate, how: Preparation, folder: Path) -> Report:
    report = Report()
    conversations = read_conversations(sources, template, how, report)
    with (
        pa.ipc.new_stream(str(folder / "documents.arrow"), _DOCUMENTS) as documents,
        pa.ipc.new_stream(str(folder / "prompts.arrow"), _PROMPTS) as prompts,
    ):
        while chunk := list(islice(conversations, _CHUNK)):
            rows = list(documents_of(chunk, template, how, report))
            _write_rows(documents, _DOCUMENTS, rows)
            if how.prompts:
                _write_rows(prompts, _PROMPTS, list(_prompts(chunk, template, how, report)))
    if not report.documents:
        cases = report.skipped + report.too_long
        why = f"; the first of them: {cases[0][0]} ({cases[0][1]}): {cases[0][2]}" if cases else ""
        names = ", ".join(source.path for source in sources)
        raise DataError(f"{names}: none of {report.rows} rows can be used{why}")
    return report


def documents_of(
    chunk: Sequence[tuple[int, str, Conversation]], template: ChatTemplate, how: Preparation, report: Report
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
            spans = _spans(fitting.supervised)
            report.documents += 1
            report.tokens += len(fitting.input_ids)
            report.supervised += sum(fitting.supervised)
            row = Document(id=conversation.id, input_ids=fitting.input_ids, supervised=spans)
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


def _prompts(
    chunk: Sequence[tuple[int, str, Conversation]], template: ChatTemplate, how: Preparation, report: Report
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


def _spans(mask: Sequence[bool]) -> list[int]:
    """Half-open ranges of the set flags, flat."""
    edges = [index for index in range(1, len(mask)) if mask[index] != mask[index - 1]]
    starts_set = [0] if mask and mask[0] else []
    return [*starts_set, *edges, *([len(mask)] if mask and mask[-1] else [])]


def _write_rows(writer: pa.RecordBatchStreamWriter, schema: pa.Schema, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
