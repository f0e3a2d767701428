"""Preparation: rows are encoded into documents and prompts once, and cached as Arrow files for later runs.

A prepared folder is named by a fingerprint of everything that went into it: rows, tokenizer, template, settings.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_info

from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.conversation.types import Conversation
from fc_lightning.data.cache import hash_texts, is_intact, read_digests, write_digests
from fc_lightning.data.encoding import EncodingSettings, augment_documents, encode_documents, encode_prompts
from fc_lightning.data.formats import RowError
from fc_lightning.data.reasoning import add_reasoning
from fc_lightning.data.row_report import RowReport
from fc_lightning.data.sources import DataError, Row, Source, brief, default_id
from fc_lightning.data.splitting import hold_out, question
from fc_lightning.data.workers import choose_num_processes, run_ordered
from fc_lightning.utils.atomic_files import partial_path, wrap_os_errors
from fc_lightning.utils.progress import track

_VERSION = 7  # of the layout below; a change invalidates prepared folders
_LIBRARIES = ("transformers", "tokenizers", "jinja2")  # that decide how rows are encoded
_CHUNK = 512  # rows that are read, rendered and encoded together
_IDS = pa.list_(pa.int32())
_DOCUMENTS = pa.schema(
    {
        **{"id": pa.string(), "source": pa.int32(), "category": pa.string(), "input_ids": _IDS, "supervised": _IDS},
        **{"parts": pa.list_(pa.int8()), "rejected_ids": _IDS, "rejected_supervised": _IDS},
    }
)
_PROMPTS = pa.schema(
    {
        **{"id": pa.string(), "turn": pa.int32(), "category": pa.string(), "input_ids": _IDS, "expected": pa.string()},
        **{"tools": pa.string(), "gold": pa.string(), "response_schema": pa.string(), "answer": pa.string()},
        "perturbation": pa.string(),
    }
)


@dataclass(frozen=True)
class Prepared:
    """A prepared dataset."""

    # Rows `id, source, category, input_ids, supervised, parts`; see :class:`fc_lightning.data.collator.Document`
    documents: Dataset
    # Rows `id, turn, category, input_ids, expected, tools, gold, response_schema, answer, perturbation`, see
    # :class:`fc_lightning.data.dataloaders.PromptBatch`
    prompts: Dataset
    report: RowReport  # counts of used and skipped rows
    digest: str  # SHA-256 of the documents; independent of the files that their rows came from


def fingerprint(sources: Sequence[Source], template: ChatTemplate, settings: EncodingSettings) -> str:
    """A digest that changes whenever the documents may change."""
    return hash_texts([encoding_digest(template, settings), *(source.fingerprint() for source in sources)])[:24]


def encoding_digest(template: ChatTemplate, settings: EncodingSettings) -> str:
    """A digest that changes whenever the same rows may be encoded differently."""
    return hash_texts([json.dumps(_origin(template, settings), sort_keys=True)])


@functools.cache
def code_digest() -> str:
    """A digest of the code that reads, renders and encodes rows."""
    root = Path(__file__).parents[1]
    files = [file for name in ("conversation", "chat_template", "data") for file in sorted((root / name).rglob("*.py"))]
    return hash_texts(file.read_text(encoding="utf-8") for file in files)


def prepare(
    sources: Sequence[Source],
    template: ChatTemplate,
    settings: EncodingSettings,
    folder: Path,
    processes: int | None = None,
) -> None:
    """Write a prepared folder atomically, unless it exists intact.

    Raises:
        DataError: If no row can be used, or the folder cannot be written.
    """
    if is_intact(folder):
        return
    with wrap_os_errors(folder, error_type=DataError, details=" (`data.cache_dir`)"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if is_intact(folder):
                return
            if folder.exists():
                rank_zero_info(f"{folder}: damaged; preparing the data again")
                shutil.rmtree(folder)
            unfinished = partial_path(folder)
            unfinished.mkdir()
            try:
                report = _write(sources, template, settings, unfinished, choose_num_processes(sources, processes))
                (unfinished / "report.json").write_text(json.dumps(report.to_dict()), encoding="utf-8")
                origin = {"base": template.tokenizer.name_or_path, "sources": [asdict(source) for source in sources]}
                content = json.dumps({**origin, **_origin(template, settings)}, indent=1, ensure_ascii=False)
                (unfinished / "made_from.json").write_text(content, encoding="utf-8")
                write_digests(unfinished)
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)


def _origin(template: ChatTemplate, settings: EncodingSettings) -> dict[str, Any]:
    """What decides how rows are encoded; a prepared folder has it in ``made_from.json``."""
    return {
        "layout": _VERSION,
        "settings": asdict(settings),
        "tokenizer": _tokenizer_digest(template),
        "chat_template": hash_texts([template.render_mode, template.source, json.dumps(template.variables)]),
        "code": code_digest(),
        "versions": {name: version(name) for name in _LIBRARIES},
    }


@functools.lru_cache(1)  # it takes about as long as 400 rows
def _tokenizer_digest(template: ChatTemplate) -> str:
    return hash_texts([template.tokenizer.backend_tokenizer.to_str()])


def load_prepared(folder: Path) -> Prepared:
    """Open a prepared folder. Its files are memory-mapped, not read; other files in it are ignored.

    Raises:
        DataError: If the folder contains anything but prepared data.
    """
    try:
        report = RowReport.from_dict(json.loads((folder / "report.json").read_text(encoding="utf-8")))
        parts = []
        for name, schema in (("documents", _DOCUMENTS), ("prompts", _PROMPTS)):
            with pa.memory_map(str(folder / f"{name}.arrow")) as file:
                if pa.ipc.open_stream(file).schema != schema:
                    raise ValueError(f"{name}.arrow has unexpected columns")
            parts.append(Dataset.from_file(str(folder / f"{name}.arrow")))
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{folder}: not a folder of prepared data ({error}); remove the folder") from error
    return Prepared(parts[0], parts[1], report, read_digests(folder)["documents.arrow"])


def read_conversations(
    sources: Sequence[Source],
    template: ChatTemplate,
    settings: EncodingSettings,
    reports: Sequence[RowReport] | None = None,
) -> Iterator[tuple[int, str, Conversation]]:
    """The usable conversations, each with its source index and place; all others are in the report of their source."""
    reports = reports or [RowReport() for _ in sources]
    held_out, _ = _held_out(sources, settings, 1)
    for number, source in enumerate(sources):
        rows = ((number, place, row) for place, row in source.rows())
        flags = None if held_out is None else iter(held_out[number])
        for _, place, conversation in filter_rows(rows, sources, template, settings, reports[number], flags):
            yield number, place, add_reasoning(conversation, settings.thoughts, settings.thoughts_share)


def filter_rows(
    rows: Iterable[tuple[int, str, Row]],
    sources: Sequence[Source],
    template: ChatTemplate,
    settings: EncodingSettings,
    report: RowReport,
    held_out: Iterator[bool] | None = None,
) -> Iterator[tuple[int, str, Conversation]]:
    """The usable conversations of some rows on the side of ``settings.subset``; the report counts the others."""
    for number, place, row in rows:
        report.rows += 1
        is_out = held_out is not None and next(held_out)
        conversation = sources[number].read(row, place)
        # A row that cannot be read is not held out: it is counted once.
        if held_out is not None and is_out != (settings.subset == "held_out"):
            report.rows -= 1
            continue
        if isinstance(conversation, RowError):
            row_id = row.get("id") if isinstance(row, dict) else None
            report.skipped.append((place, brief(str(row_id or default_id(place))), brief(str(conversation))))
            continue
        report.note(conversation.notices)
        if conversation.defects:
            flaw = (place, conversation.id, brief("; ".join(conversation.defects)))
            if template.render_mode == "canonical":
                report.skipped.append(flaw)
                continue
            report.flawed.append(flaw)
        yield number, place, conversation


def _write(
    sources: Sequence[Source], template: ChatTemplate, settings: EncodingSettings, folder: Path, processes: int
) -> RowReport:
    held_out, remark = _held_out(sources, settings, processes)
    report = RowReport(remarks=[line for line in (remark, *(source.limit_note() for source in sources)) if line])
    work = partial(_blocks, sources, template, settings, held_out)
    with (
        pa.ipc.new_stream(str(folder / "documents.arrow"), _DOCUMENTS) as documents,
        pa.ipc.new_stream(str(folder / "prompts.arrow"), _PROMPTS) as prompts,
        track("preparing data", None, "rows") as progress,
    ):
        for block, *batches in run_ordered(work, processes):
            report.add(block)
            progress.advance(block.rows)
            for writer, schema, batch in zip((documents, prompts), (_DOCUMENTS, _PROMPTS), batches, strict=True):
                if batch:
                    writer.write_batch(pa.ipc.read_record_batch(pa.py_buffer(batch), schema))
    if not report.documents:
        cases = report.skipped + report.too_long
        why = f"; first error: {cases[0][0]} ({cases[0][1]}): {cases[0][2]}" if cases else ""
        names = ", ".join(source.path for source in sources)
        raise DataError(f"{names}: none of the {report.rows} rows can be used{why}")
    return report


def _blocks(
    sources: Sequence[Source],
    template: ChatTemplate,
    settings: EncodingSettings,
    held_out: Sequence[Sequence[bool]] | None,
    number: int,
    processes: int,
) -> Iterator[tuple[tuple[int, int], tuple[RowReport, bytes, bytes]]]:
    """The part of one process: a report, documents and prompts for each of its blocks of rows."""
    for place, rows in _shares(sources, number, processes):
        report = RowReport()
        source, first = place[0], place[1] * _CHUNK
        sides = None if held_out is None else iter(held_out[source][first : first + _CHUNK])
        chunk = list(filter_rows(rows, sources, template, settings, report, sides))
        documents = list(encode_documents(chunk, template, settings, report))
        documents = augment_documents(documents, chunk, template, settings)
        skipped = {place for place, *_ in report.skipped}  # a row is reported once
        rendered = [entry for entry in chunk if entry[1] not in skipped]
        prompts = list(encode_prompts(rendered, template, settings, report)) if settings.prompts else []
        yield place, (report, _batch(documents, _DOCUMENTS), _batch(prompts, _PROMPTS))


def _shares(
    sources: Sequence[Source], number: int, processes: int
) -> Iterator[tuple[tuple[int, int], list[tuple[int, str, Row]]]]:
    """The blocks of rows of one process, each with the key ``(source, block)``."""
    for source in range(len(sources)):
        rows = ((source, place, row) for place, row in sources[source].rows(number, processes, block=_CHUNK))
        for block in count(number, processes):
            if not (chunk := list(islice(rows, _CHUNK))):
                break
            yield (source, block), chunk


def _held_out(
    sources: Sequence[Source], settings: EncodingSettings, processes: int
) -> tuple[list[list[bool]] | None, str]:
    """Whether each row of each source is held out, and a remark on how; all rows are read for it."""
    if not settings.held_out:
        return None, ""

    def questions(number: int, processes: int) -> Iterator[tuple[tuple[int, int], tuple[int, list[str | None]]]]:
        for place, rows in _shares(sources, number, processes):
            read = (sources[source].read(row, where) for source, where, row in rows)
            yield place, (place[0], [question(one) if isinstance(one, Conversation) else None for one in read])

    by_source: list[list[str | None]] = [[] for _ in sources]
    for source, texts in run_ordered(questions, processes):
        by_source[source] += texts
    readable = [text for texts in by_source for text in texts if text is not None]
    chosen, remark = hold_out(readable, settings.held_out)
    decisions = iter(chosen)
    return [[text is not None and next(decisions) for text in texts] for texts in by_source], remark


def _batch(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> bytes:
    """Serialize rows as an Arrow record batch; empty if there are none."""
    return pa.RecordBatch.from_pylist(rows, schema=schema).serialize().to_pybytes() if rows else b""
