"""Preparation: rows become encoded documents and prompts, once, and are kept as Arrow files for every later run.

A prepared folder is named by a fingerprint over all that went into it: rows, tokenizer, template, lengths.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from datasets import Dataset
from filelock import FileLock

from fc_lightning.chat_template import ChatTemplate, ChatTemplateError, Encoded, Supervise
from fc_lightning.data.sources import DataError, Source
from fc_lightning.formats import RowError, read_row
from fc_lightning.packing import Document
from fc_lightning.toolcalls import Conversation, Message, ToolCall, dump_json, parse_turn

_VERSION = 3  # of the layout below; a change makes old prepared folders unknown
_CHUNK = 512  # conversations that are encoded in one call of the tokenizer
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
        thoughts: ``keep`` what the rows have, or ``none``: take it away. Canonical rendering only.
        max_length: Tokens that a document may have.
        too_long: What becomes of a longer one: ``drop`` it, or ``cut`` it behind the last model turn that fits.
        held_out: Share of the conversations that are held out for validation; those with the same question go together.
        side: Which part this is, ``kept`` or ``held_out``.
        prompts: Whether to make a prompt of each model turn too, to generate from.
    """

    supervise: Supervise = "assistant"
    thoughts: Literal["keep", "none"] = "keep"
    max_length: int = 2048
    too_long: Literal["drop", "cut"] = "drop"
    held_out: float = 0.0
    side: Literal["kept", "held_out"] = "kept"
    prompts: bool = False


@dataclass
class Report:
    """What became of the rows; each list has ``[place, id, reason]``.

    Attributes:
        rows: Rows read.
        documents: Documents made.
        tokens: Their tokens.
        supervised: Those of them that are learned.
        prompts: Prompts made.
        skipped: Rows that are not used.
        flawed: Rows used verbatim though not all of their calls can be read; they make no prompts.
        too_long: Rows left out because they are longer than ``max_length``.
        cut: Rows cut behind a turn.
    """

    rows: int = 0
    documents: int = 0
    tokens: int = 0
    supervised: int = 0
    prompts: int = 0
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    flawed: list[tuple[str, str, str]] = field(default_factory=list)
    too_long: list[tuple[str, str, str]] = field(default_factory=list)
    cut: list[tuple[str, str, str]] = field(default_factory=list)

    def lines(self, name: str, examples: int = 3) -> list[str]:
        """The report in a few lines of text."""
        share = self.supervised / self.tokens if self.tokens else 0.0
        out = [
            f"{name}: {self.documents:,} of {self.rows:,} rows, {self.tokens:,} tokens, {share:.1%} of them supervised"
            + (f", {self.prompts:,} turns to generate" if self.prompts else "")
        ]
        for what in ("skipped", "flawed", "too_long", "cut"):
            cases = getattr(self, what)
            out += [f"  {len(cases):,} {what.replace('_', ' ')}"] if cases else []
            out += [f"    {place} ({id}): {reason}" for place, id, reason in cases[:examples]]
            out += ["    …"] if len(cases) > examples else []
        return out


@dataclass(frozen=True)
class Prepared:
    """A prepared data set.

    Attributes:
        documents: Rows ``id, source, category, input_ids, supervised``, see :class:`fc_lightning.packing.Document`.
        prompts: Rows ``id, turn, category, input_ids, expected, tools, gold, response_schema, answer``, see
            :class:`fc_lightning.data.datamodule.PromptBatch`.
        report: What became of the rows.
    """

    documents: Dataset
    prompts: Dataset
    report: Report


def fingerprint(sources: Sequence[Source], template: ChatTemplate, how: Preparation) -> str:
    """Changes whenever the documents may."""
    digest = hashlib.sha256(json.dumps([_VERSION, asdict(how), template.render_mode, template.source]).encode())
    digest.update(template.tokenizer.backend_tokenizer.to_str().encode())
    for source in sources:
        digest.update(source.fingerprint().encode())
    return digest.hexdigest()[:24]


def prepare(sources: Sequence[Source], template: ChatTemplate, how: Preparation, folder: Path) -> None:
    """Write a prepared folder, unless it is there already. It appears whole or not at all.

    Raises:
        DataError: If no row can be used.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            return
        partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            report = _write(sources, template, how, partial)
            (partial / "report.json").write_text(json.dumps(asdict(report)), encoding="utf-8")
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def load_prepared(folder: Path) -> Prepared:
    """Open a prepared folder; its files are mapped into memory, not read."""
    report = Report(**json.loads((folder / "report.json").read_text(encoding="utf-8")))
    documents, prompts = (Dataset.from_file(str(folder / f"{name}.arrow")) for name in ("documents", "prompts"))
    return Prepared(documents, prompts, report)


def read_conversations(
    sources: Sequence[Source], template: ChatTemplate, how: Preparation, report: Report
) -> Iterator[tuple[int, str, Conversation]]:
    """The usable conversations, each with the number of its source and its place; the others go into the report."""
    for number, source in enumerate(sources):
        for place, row in source.rows():
            report.rows += 1
            default_id = f"{Path(source.path).stem}_{place.rsplit(':', 1)[-1]}"
            try:
                if isinstance(row, str):
                    raise RowError(f"not a JSON object: {row[:80].strip()}")
                conversation = read_row(row, source.format, default_id)
            except RowError as error:
                report.skipped.append((place, str(_row_id(row, default_id)), str(error)))
                continue
            if how.held_out and (_is_held_out(conversation, how.held_out) != (how.side == "held_out")):
                report.rows -= 1
                continue
            if conversation.defects:
                flaw = (place, conversation.id, "; ".join(conversation.defects))
                if template.render_mode == "canonical":
                    report.skipped.append(flaw)
                    continue
                report.flawed.append(flaw)
            if how.thoughts == "none":
                conversation = replace(conversation, messages=tuple(map(_without_thought, conversation.messages)))
            yield number, place, conversation


def _write(sources: Sequence[Source], template: ChatTemplate, how: Preparation, folder: Path) -> Report:
    report = Report()
    conversations = read_conversations(sources, template, how, report)
    with (
        pa.ipc.new_stream(str(folder / "documents.arrow"), _DOCUMENTS) as documents,
        pa.ipc.new_stream(str(folder / "prompts.arrow"), _PROMPTS) as prompts,
    ):
        while chunk := list(islice(conversations, _CHUNK)):
            rows = list(_documents(chunk, template, how, report))
            _write_rows(documents, _DOCUMENTS, rows)
            if how.prompts:
                _write_rows(prompts, _PROMPTS, list(_prompts(chunk, template, how, report)))
    if not report.documents:
        cases = report.skipped + report.too_long
        why = f"; the first of them: {cases[0][0]} ({cases[0][1]}): {cases[0][2]}" if cases else ""
        names = ", ".join(source.path for source in sources)
        raise DataError(f"{names}: none of {report.rows} rows can be used{why}")
    return report


def _documents(
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
            rendered.append(template.render(messages, conversation))
            entries.append(entry)
        except ChatTemplateError as error:
            report.skipped.append((entry[1], conversation.id, str(error)))
    for (source, place, conversation), encoded in zip(entries, template.encode(rendered, how.supervise), strict=True):
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
    for last in reversed(template.model_turns(messages)):
        encoded = template.encode([template.render(messages[: last + 1], conversation)], how.supervise)[0]
        if len(encoded.input_ids) <= how.max_length:
            return encoded
    return None


def _prompts(
    chunk: Sequence[tuple[int, str, Conversation]], template: ChatTemplate, how: Preparation, report: Report
) -> Iterator[dict[str, Any]]:
    """A prompt for each model turn, with the true history before it. `max_length` is for training, not for these."""
    rendered, rows = [], []
    for _, _, conversation in chunk:
        if conversation.defects:
            continue
        messages = template.messages(conversation)
        schema = conversation.response_schema
        row: dict[str, Any] = {"id": conversation.id, "category": conversation.category}
        row["tools"] = dump_json([tool.to_openai() for tool in conversation.tools])
        row["response_schema"] = "" if schema is None else dump_json(schema)
        gold = dump_json(conversation.gold) if conversation.gold else ""
        for turn, index in enumerate(template.model_turns(messages)):
            rendered.append(template.render(messages[:index], conversation, generation_prompt=True))
            expected, answer = _expected(conversation, template, index)
            calls = [call.to_dict() for call in expected]
            row |= {"turn": turn, "expected": dump_json(calls), "gold": gold if calls else "", "answer": answer}
            rows.append(dict(row))
            gold = "" if calls else gold  # it belongs to the first turn that calls
    for row, encoded in zip(rows, template.encode(rendered), strict=True):
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


def _is_held_out(conversation: Conversation, share: float) -> bool:
    questions = "\n".join(message.content for message in conversation.messages if message.role == "user")
    words = " ".join(questions.lower().split())
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8]) < share * 2**64


def _without_thought(message: Message) -> Message:
    return replace(message, thought=None)


def _row_id(row: Any, default: str) -> Any:
    return row.get("id") or default if isinstance(row, dict) else default


def _write_rows(writer: pa.RecordBatchStreamWriter, schema: pa.Schema, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
