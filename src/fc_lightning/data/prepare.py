"""Preparation: rows become encoded documents and prompts, once, and are kept as Arrow files for every later run.

A prepared folder is named by a fingerprint over all that went into it: rows, tokenizer, template, lengths.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_info

from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.conversation.types import Conversation
from fc_lightning.data.cache import digest_of_texts, is_sound, read_digests, seal
from fc_lightning.data.encoding import Preparation, documents_of, prompts_of
from fc_lightning.data.formats import RowError
from fc_lightning.data.reasoning import add_reasoning
from fc_lightning.data.row_report import RowReport
from fc_lightning.data.sources import DataError, Row, Source, brief, default_id
from fc_lightning.data.splitting import hold_out, question
from fc_lightning.data.workers import in_order, processes_for
from fc_lightning.utils.atomic_files import partial_path, wrap_os_errors

_VERSION = 6  # of the layout below; a change makes old prepared folders unknown
_CHUNK = 512  # rows that are read, rendered and encoded together
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
class Prepared:
    """A prepared data set.

    Attributes:
        documents: Rows ``id, source, category, input_ids, supervised``, see :class:`fc_lightning.data.packing.Document`.
        prompts: Rows ``id, turn, category, input_ids, expected, tools, gold, response_schema, answer``, see
            :class:`fc_lightning.data.batches.PromptBatch`.
        report: What became of the rows.
        digest: Of the documents, wherever their rows came from.
    """

    documents: Dataset
    prompts: Dataset
    report: RowReport
    digest: str


def fingerprint(sources: Sequence[Source], template: ChatTemplate, how: Preparation) -> str:
    """Changes whenever the documents may."""
    return digest_of_texts([digest_of(template, how), *(source.fingerprint() for source in sources)])[:24]


def digest_of(template: ChatTemplate, how: Preparation) -> str:
    """Changes whenever the same rows may become other documents."""
    settings = json.dumps([_VERSION, asdict(how), template.render_mode, template.source])
    return digest_of_texts([settings, template.tokenizer.backend_tokenizer.to_str()])


def prepare(
    sources: Sequence[Source], template: ChatTemplate, how: Preparation, folder: Path, processes: int | None = None
) -> None:
    """Write a prepared folder, unless it is there already, undamaged. It appears whole or not at all.

    Args:
        sources: Where rows come from.
        template: Renders and encodes them.
        how: How conversations become documents.
        folder: Where to.
        processes: How many share the work; what they write does not depend on it. See :func:`processes_for`.

    Raises:
        DataError: If no row can be used, or the folder cannot be written.
    """
    if is_sound(folder):
        return
    with wrap_os_errors(folder, error_type=DataError, details=" (`data.cache_dir`)"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if is_sound(folder):
                return
            if folder.exists():
                rank_zero_info(f"{folder}: damaged; the data is prepared anew")
                shutil.rmtree(folder)
            unfinished = partial_path(folder)
            unfinished.mkdir()
            try:
                report = _write(sources, template, how, unfinished, processes_for(sources, processes))
                (unfinished / "report.json").write_text(json.dumps(asdict(report)), encoding="utf-8")
                seal(unfinished)
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)


def load_prepared(folder: Path) -> Prepared:
    """Open a prepared folder; its files are mapped into memory, not read, and nothing else there is looked at.

    Raises:
        DataError: If somebody has put something else there.
    """
    try:
        report = RowReport(**json.loads((folder / "report.json").read_text(encoding="utf-8")))
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
    sources: Sequence[Source], template: ChatTemplate, how: Preparation, report: RowReport
) -> Iterator[tuple[int, str, Conversation]]:
    """The usable conversations, each with the number of its source and its place; the others go into the report."""
    held_out = _held_out(sources, how, 1)
    for number, source in enumerate(sources):
        rows = ((number, place, row) for place, row in source.rows())
        yield from usable(rows, sources, template, how, report, None if held_out is None else iter(held_out[number]))


def usable(
    rows: Iterable[tuple[int, str, Row]],
    sources: Sequence[Source],
    template: ChatTemplate,
    how: Preparation,
    report: RowReport,
    held_out: Iterator[bool] | None = None,
) -> Iterator[tuple[int, str, Conversation]]:
    """Those of the rows that can be used; the others go into the report.

    Args:
        rows: The number of the source, the place and the row.
        sources: Give the rows' formats.
        template: Renders; verbatim rendering needs no calls that can be read.
        how: What is wanted.
        report: Is added to.
        held_out: For each row, whether it is held out; only those of ``how.side`` are given.
    """
    for number, place, row in rows:
        report.rows += 1
        is_out = held_out is not None and next(held_out)
        conversation = sources[number].read(row, place)
        if isinstance(conversation, RowError):
            row_id = row.get("id") if isinstance(row, dict) else None
            report.skipped.append((place, brief(str(row_id or default_id(place))), brief(str(conversation))))
            continue
        if held_out is not None and is_out != (how.side == "held_out"):
            report.rows -= 1
            continue
        if conversation.defects:
            flaw = (place, conversation.id, brief("; ".join(conversation.defects)))
            if template.render_mode == "canonical":
                report.skipped.append(flaw)
                continue
            report.flawed.append(flaw)
        yield number, place, add_reasoning(conversation, how.thoughts, how.thoughts_share)


def _write(
    sources: Sequence[Source], template: ChatTemplate, how: Preparation, folder: Path, processes: int
) -> RowReport:
    report = RowReport()
    work = partial(_blocks, sources, template, how, _held_out(sources, how, processes))
    with (
        pa.ipc.new_stream(str(folder / "documents.arrow"), _DOCUMENTS) as documents,
        pa.ipc.new_stream(str(folder / "prompts.arrow"), _PROMPTS) as prompts,
    ):
        for block, *batches in in_order(work, processes):
            report.add(block)
            for writer, schema, batch in zip((documents, prompts), (_DOCUMENTS, _PROMPTS), batches, strict=True):
                if batch:
                    writer.write_batch(pa.ipc.read_record_batch(pa.py_buffer(batch), schema))
    if not report.documents:
        cases = report.skipped + report.too_long
        why = f"; the first of them: {cases[0][0]} ({cases[0][1]}): {cases[0][2]}" if cases else ""
        names = ", ".join(source.path for source in sources)
        raise DataError(f"{names}: none of {report.rows} rows can be used{why}")
    return report


def _blocks(
    sources: Sequence[Source],
    template: ChatTemplate,
    how: Preparation,
    held_out: Sequence[Sequence[bool]] | None,
    number: int,
    processes: int,
) -> Iterator[tuple[tuple[int, int], tuple[RowReport, bytes, bytes]]]:
    """One process's share of the work: a report, documents and prompts for each of its blocks of rows."""
    for place, rows in _shares(sources, number, processes):
        report = RowReport()
        source, first = place[0], place[1] * _CHUNK
        sides = None if held_out is None else iter(held_out[source][first : first + _CHUNK])
        chunk = list(usable(rows, sources, template, how, report, sides))
        documents = list(documents_of(chunk, template, how, report))
        prompts = list(prompts_of(chunk, template, how, report)) if how.prompts else []
        yield place, (report, _batch(documents, _DOCUMENTS), _batch(prompts, _PROMPTS))


def _shares(
    sources: Sequence[Source], number: int, processes: int
) -> Iterator[tuple[tuple[int, int], list[tuple[int, str, Row]]]]:
    """The rows that are one process's, in blocks, each with the number of its source and its own there."""
    for source in range(len(sources)):
        rows = ((source, place, row) for place, row in sources[source].rows(number, processes, block=_CHUNK))
        for block in count(number, processes):
            if not (chunk := list(islice(rows, _CHUNK))):
                break
            yield (source, block), chunk


def _held_out(sources: Sequence[Source], how: Preparation, processes: int) -> list[list[bool]] | None:
    """For each source's rows, whether they are held out; that hangs on all conversations, so all are read for it."""
    if not how.held_out:
        return None

    def questions(number: int, processes: int) -> Iterator[tuple[tuple[int, int], tuple[int, list[str | None]]]]:
        for place, rows in _shares(sources, number, processes):
            read = (sources[source].read(row, where) for source, where, row in rows)
            yield place, (place[0], [question(one) if isinstance(one, Conversation) else None for one in read])

    asked: list[list[str | None]] = [[] for _ in sources]
    for source, some in in_order(questions, processes):
        asked[source] += some
    sides = iter(hold_out([text for some in asked for text in some if text is not None], how.held_out))
    return [[text is not None and next(sides) for text in some] for some in asked]


def _batch(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> bytes:
    """The rows as Arrow writes them; nothing if there are none."""
    return pa.RecordBatch.from_pylist(rows, schema=schema).serialize().to_pybytes() if rows else b""
