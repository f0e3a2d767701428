"""``audit``: checks the training data, and shows it in the terminal, as JSON and as an HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from datasets import Dataset
from lightning import Trainer

from fc_lightning.commands.audit.findings import INFORMATIVE, Finding, find, sort_findings
from fc_lightning.commands.audit.show import print_audit, write_page
from fc_lightning.commands.audit.sources import SourceSummary, readable_sources, without_calls
from fc_lightning.commands.audit.statistics import Statistics, measure
from fc_lightning.conversation.types import Conversation
from fc_lightning.data import DataError, FunctionCallingDataModule
from fc_lightning.data.augmented_epochs import open_documents
from fc_lightning.data.prepare import read_conversations
from fc_lightning.data.row_report import RowReport
from fc_lightning.data.sources import Source
from fc_lightning.training.module import FunctionCallingModule
from fc_lightning.utils.atomic_files import write_text
from fc_lightning.utils.errors import UserError

__all__ = ["AuditError", "Finding", "Statistics", "audit", "find", "measure"]


class AuditError(UserError):
    """A strict audit exceeded the limits of the configuration."""


def audit(
    trainer: Trainer,
    model: FunctionCallingModule,
    datamodule: FunctionCallingDataModule,
    output: str | None = None,
    examples: int = 2,
    strict: bool = False,
) -> list[Finding]:
    """Read the data as training would, check it, and show what the model will see.

    Args:
        trainer: The trainer, which has the folder of the runs.
        model: Not used.
        datamodule: The data.
        output: The folder for audit.json and audit.html; by default one next to the runs.
        examples: Number of conversations to show from each split, with the supervised tokens in color.
        strict: Whether to fail on findings above ``data.audit_limits``.

    Returns:
        The findings in all splits.

    Raises:
        AuditError: If ``strict``, and the fraction of rows with a kind of finding exceeds its limit in a split.
    """
    data, folder = datamodule, Path(output) if output else _default_folder(trainer)
    unreadable = _leave_out_unreadable(data)
    data.setup(None)
    splits = [name for name in data.prepared if name != "test" or data.sources["test"] != data.sources["validation"]]
    read = {split: _read(data, split) for split in splits}
    summaries = [summary for _, summarized in read.values() for summary in summarized]
    conversations = {split: found for split, (found, _) in read.items()}
    findings = find(conversations, {split: data.prepared[split].report for split in splits})
    findings = sort_findings([*unreadable, *without_calls(summaries), *findings], splits)
    _count_findings(summaries, findings)
    statistics = _measure(data, conversations)
    too_many = exceeded(findings, statistics, data.audit_limits)
    content = {
        "sources": [one.to_dict() for one in summaries],
        "splits": {split: one.to_dict() for split, one in statistics.items()},
        "findings": [finding._asdict() for finding in findings],
        "exceeded": too_many,
    }
    write_text(folder / "audit.json", json.dumps(content, indent=1, ensure_ascii=False))
    shown = _examples(data, splits, examples)
    write_page(folder / "audit.html", summaries, statistics, findings, shown, data.template.tokenizer)
    print_audit(summaries, statistics, findings, shown, data.template.tokenizer)
    print(f"{folder / 'audit.html'}\n{folder / 'audit.json'}")
    if strict and too_many:
        raise AuditError("the findings exceed `data.audit_limits`: " + "; ".join(too_many))
    return findings


def _measure(
    data: FunctionCallingDataModule, read: Mapping[str, Sequence[tuple[str, Conversation]]]
) -> dict[str, Statistics]:
    capacity = data.max_length if data.packing else None
    statistics = {
        split: measure([one for _, one in conversations], data.prepared[split], capacity)
        for split, conversations in read.items()
    }
    if "train" in statistics:
        for split in statistics.keys() - {"train"}:
            statistics[split].compare(statistics["train"])
    return statistics


def _examples(data: FunctionCallingDataModule, splits: Sequence[str], number: int) -> dict[str, Dataset]:
    """The first documents of each split, and the first training documents that the first epoch augments."""
    documents = {split: data.prepared[split].documents for split in splits}
    shown = {split: one.select(range(min(number, len(one)))) for split, one in documents.items()}
    if data.augmentation is not None and "train" in shown:
        plain, varied = documents["train"], open_documents(data.prepare_epoch(0))
        changed = (n for n in range(len(plain)) if plain[n]["input_ids"] != varied[n]["input_ids"])
        shown["train, augmented"] = varied.select(list(islice(changed, number)))
    return shown


def _default_folder(trainer: Trainer) -> Path:
    runs = trainer.logger.root_dir if trainer.logger else trainer.default_root_dir
    return Path(runs) / "audit"


def _leave_out_unreadable(data: FunctionCallingDataModule) -> list[Finding]:
    """Remove files that cannot be read from the sources; returns a finding for each."""
    findings: list[Finding] = []
    done: dict[int, list[Source]] = {}  # splits may share a list of sources
    for split, sources in data.sources.items():
        if id(sources) not in done:
            done[id(sources)], found = readable_sources(split, sources)
            if found and not done[id(sources)]:
                raise DataError(f"{found[0].place}: {found[0].detail}")
            findings += found
        data.sources[split] = done[id(sources)]
    return findings


def _read(data: FunctionCallingDataModule, split: str) -> tuple[list[tuple[str, Conversation]], list[SourceSummary]]:
    """The usable conversations of a split with their places, and a summary of each source."""
    sources = data.sources[split]
    reports = [RowReport() for _ in sources]
    summaries = [SourceSummary(split, source.path, source.format) for source in sources]
    conversations = []
    for number, place, conversation in read_conversations(sources, data.template, data.preparation(split), reports):
        summaries[number].add(conversation)
        conversations.append((place, conversation))
    for summary, report in zip(summaries, reports, strict=True):
        summary.rows, summary.skipped = report.rows, len(report.skipped)
    # A held-out fraction may have no row of a source.
    return conversations, [summary for summary in summaries if summary.rows or split == "train"]


def _count_findings(summaries: Sequence[SourceSummary], findings: Sequence[Finding]) -> None:
    """Count the findings of each source, the one with the longest path that a finding's place begins with."""
    for finding in findings:
        candidates = [one for one in summaries if one.split == finding.split and finding.place.startswith(one.path)]
        if candidates:
            max(candidates, key=lambda one: len(one.path)).findings += 1


def exceeded(findings: list[Finding], statistics: dict[str, Statistics], limits: dict[str, float] | None) -> list[str]:
    """Exceeded limits, one line each. A limit is a fraction of the split's rows, 0 by default."""
    rows: dict[tuple[str, str], set[str]] = {}
    for finding in findings:
        rows.setdefault((finding.split, finding.kind), set()).add(finding.place)
    lines = []
    for (split, kind), places in rows.items():
        limit = (limits or {}).get(kind, 1.0 if kind in INFORMATIVE else 0.0)
        if len(places) > limit * statistics[split].rows:
            lines.append(f"{split}: {kind} in {len(places):,} of {statistics[split].rows:,} rows, limit {limit:g}")
    return lines
