"""The audit: what the model will be trained on, counted, checked and shown in the terminal, as JSON and as a page."""

from __future__ import annotations

import json
from pathlib import Path

from fc_lightning.commands.audit.findings import Finding, find
from fc_lightning.commands.audit.show import print_audit, write_page
from fc_lightning.commands.audit.statistics import Statistics, measure
from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.data.prepare import read_conversations
from fc_lightning.data.row_report import RowReport
from fc_lightning.utils.atomic_files import write_text

__all__ = ["AuditError", "Finding", "Statistics", "audit", "find", "measure"]


class AuditError(ValueError):
    """A strict audit has found more than the configuration allows."""


def audit(data: FunctionCallingDataModule, folder: Path, examples: int = 2, strict: bool = False) -> list[Finding]:
    """Read the data as training would; print what is found and write ``audit.json`` and ``audit.html``.

    Args:
        data: The data, as it is configured for training.
        folder: Where the files are written.
        examples: Conversations to show of each split, as the model sees them.
        strict: Whether to fail on findings above ``data.audit_limits``.

    Returns:
        The findings, all splits'.

    Raises:
        AuditError: If ``strict``, and a kind of finding has a larger share of a split's rows than its limit.
    """
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
    write_page(folder / "audit.html", statistics, findings, shown, data.template.tokenizer)
    print_audit(statistics, findings, shown, data.template.tokenizer)
    print(f"{folder / 'audit.html'}\n{folder / 'audit.json'}")
    if strict and too_many:
        raise AuditError("the audit found too much (`data.audit_limits`): " + "; ".join(too_many))
    return findings


def exceeded(findings: list[Finding], statistics: dict[str, Statistics], limits: dict[str, float] | None) -> list[str]:
    """What is above its limit, a line each; a limit is a share of the split's rows, 0 where none is given."""
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
