"""``audit``: checks the training data, and shows it in the terminal, as JSON and as an HTML page."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from datasets import Dataset
from lightning import Trainer

from fc_lightning.commands.audit.findings import Finding, find
from fc_lightning.commands.audit.show import print_audit, write_page
from fc_lightning.commands.audit.statistics import Statistics, measure
from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.data.augmented_epochs import open_documents
from fc_lightning.data.prepare import read_conversations
from fc_lightning.data.row_report import RowReport
from fc_lightning.training.module import FunctionCallingModule
from fc_lightning.utils.atomic_files import write_text

__all__ = ["AuditError", "Finding", "Statistics", "audit", "find", "measure"]


class AuditError(ValueError):
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
        examples: Number of conversations to show from each split, with the supervised tokens in colour.
        strict: Whether to fail on findings above ``data.audit_limits``.

    Returns:
        The findings in all splits.

    Raises:
        AuditError: If ``strict``, and the share of rows with a kind of finding exceeds its limit in a split.
    """
    data, folder = datamodule, Path(output) if output else _default_folder(trainer)
    data.setup(None)
    splits = [name for name in data.prepared if name != "test" or data.sources["test"] != data.sources["validation"]]
    read = {
        split: [
            (place, conversation)
            for _, place, conversation in read_conversations(
                data.sources[split], data.template, data.preparation(split), RowReport()
            )
        ]
        for split in splits
    }
    findings = find(read, {split: data.prepared[split].report for split in splits})
    capacity = data.max_length if data.packing else None
    statistics = {split: measure([one for _, one in read[split]], data.prepared[split], capacity) for split in splits}
    if "train" in splits:
        for split in splits:
            if split != "train":
                statistics[split].compare(statistics["train"])
    too_many = exceeded(findings, statistics, data.audit_limits)
    content = {
        "splits": {split: one.to_dict() for split, one in statistics.items()},
        "findings": [finding._asdict() for finding in findings],
        "exceeded": too_many,
    }
    write_text(folder / "audit.json", json.dumps(content, indent=1, ensure_ascii=False))
    shown = {split: data.prepared[split].documents.select(range(_most(data, split, examples))) for split in splits}
    if data.augmentation is not None and "train" in shown:
        shown["train, augmented"] = _augmented(data, examples)
    write_page(folder / "audit.html", statistics, findings, shown, data.template.tokenizer)
    print_audit(statistics, findings, shown, data.template.tokenizer)
    print(f"{folder / 'audit.html'}\n{folder / 'audit.json'}")
    if strict and too_many:
        raise AuditError("the audit exceeded its limits (`data.audit_limits`): " + "; ".join(too_many))
    return findings


def _default_folder(trainer: Trainer) -> Path:
    runs = trainer.logger.root_dir if trainer.logger else trainer.default_root_dir
    return Path(runs) / "audit"


def exceeded(findings: list[Finding], statistics: dict[str, Statistics], limits: dict[str, float] | None) -> list[str]:
    """Exceeded limits, one line each. A limit is a share of the split's rows, 0 by default."""
    rows: dict[tuple[str, str], set[str]] = {}
    for finding in findings:
        rows.setdefault((finding.split, finding.kind), set()).add(finding.place)
    lines = []
    for (split, kind), places in rows.items():
        limit = (limits or {}).get(kind, 0.0)
        if len(places) > limit * statistics[split].rows:
            lines.append(f"{split}: {kind} in {len(places):,} of {statistics[split].rows:,} rows, limit {limit:g}")
    return lines


def _most(data: FunctionCallingDataModule, split: str, examples: int) -> int:
    return min(examples, len(data.prepared[split].documents))


def _augmented(data: FunctionCallingDataModule, examples: int) -> Dataset:
    """The first training documents that the first epoch varies."""
    plain, varied = data.prepared["train"].documents, open_documents(data.prepare_epoch(0))
    changed = (n for n in range(len(plain)) if plain[n]["input_ids"] != varied[n]["input_ids"])
    return varied.select(list(islice(changed, examples)))
