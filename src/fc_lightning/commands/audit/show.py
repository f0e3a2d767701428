"""Output of an audit: in the terminal, and as an HTML page."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from fc_lightning.commands.audit.findings import KINDS, Finding
from fc_lightning.commands.audit.sources import SourceSummary
from fc_lightning.commands.audit.statistics import Statistics
from fc_lightning.utils import html as pages
from fc_lightning.utils.atomic_files import write_text
from fc_lightning.utils.escaping import printable_text

_SOURCE_COLUMNS = ("split", "source", "format", "confidence", "rows", "used", "calls", "findings")
_MAX_TOOLS = 25
_MAX_FINDINGS = 5  # per kind and split in the terminal
_MAX_ROWS = 2000  # in the table of the page; the JSON file has all


def figures_of(statistics: Statistics) -> dict[str, str]:
    """The key figures of a split."""
    one = statistics
    figures = {
        "rows": f"{one.rows:,}",
        "used": f"{one.documents:,}",
        "model turns": f"{one.turns:,}",
        "with reasoning": f"{one.thoughts:,}",
        "no call": f"{one.calls['none']:,}",
        "one call": f"{one.calls['one']:,}",
        "multiple calls": f"{one.calls['several']:,}",
        "tokens": f"{one.tokens:,}",
        "supervised": f"{one.supervised / max(one.tokens, 1):.1%}",
        "packs": f"{one.packs:,}",
        "packs filled": f"{one.packing:.1%}",
        "tools called": f"{len(one.tools):,}",
        "offered tools": f"{len(one.offered):,}",
        "tool name in question": f"{one.spelled_out:.1%}",
    }
    if one.known_tools is not None and one.known_calls is not None:
        figures["offered tools seen in training"] = f"{one.known_tools:.1%}"
        figures["calls to tools seen in training"] = f"{one.known_calls:.1%}"
    return figures


def segments(document: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, bool]]:
    """The texts of a document, each with whether it is supervised."""
    edges = [0, *document["supervised"], len(document["input_ids"])]
    for number, (start, end) in enumerate(pairwise(edges)):
        yield tokenizer.decode(document["input_ids"][start:end]), number % 2 == 1


def print_audit(
    summaries: Sequence[SourceSummary],
    statistics: Mapping[str, Statistics],
    findings: Sequence[Finding],
    shown: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Print key figures, findings and a few conversations, with supervised text in green."""
    console = Console(file=sys.stdout, highlight=False)
    table = Table("", *statistics, title="audit")
    columns = [figures_of(one) for one in statistics.values()]
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *(column.get(name, "–") for column in columns))
    console.print(table)
    console.print(_source_table(summaries))
    counts = Counter((finding.split, finding.kind) for finding in findings)
    for (split, kind), count in counts.items():
        console.print(f"{split}: {count:,} {kind} ({KINDS[kind]})", markup=False)
        cases = (one for one in findings if (one.split, one.kind) == (split, kind))
        for one in islice(cases, _MAX_FINDINGS):
            line = f"    {one.place} ({one.id}): {one.detail}" if one.id else f"    {one.place}: {one.detail}"
            console.print(printable_text(line, one_line=True), markup=False, soft_wrap=True)
        if count > _MAX_FINDINGS:
            console.print("    …")
    console.print("no findings" if not findings else f"{len(findings):,} findings")
    for split, documents in shown.items():
        for document in documents:
            console.rule(Text(printable_text(f"{split}: {document['id']}", one_line=True)))
            text = Text()
            for part, supervised in segments(document, tokenizer):
                text.append(printable_text(part), style="green" if supervised else "dim")
            console.print(text)


def _source_table(summaries: Sequence[SourceSummary]) -> Table:
    table = Table(title="sources")
    for name in _SOURCE_COLUMNS:
        table.add_column(name, overflow="fold")
    for row in _source_rows(summaries):
        table.add_row(*(printable_text(cell, one_line=True) for cell in row))
    return table


def _source_rows(summaries: Sequence[SourceSummary]) -> list[list[str]]:
    return [
        [
            *(one.split, one.path, one.format, one.confidence),
            *(f"{count:,}" for count in (one.rows, one.rows - one.skipped, one.calls, one.findings)),
        ]
        for one in summaries
    ]


def write_page(
    file: Path,
    summaries: Sequence[SourceSummary],
    statistics: Mapping[str, Statistics],
    findings: Sequence[Finding],
    shown: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write the page."""
    sections: dict[str, list[str | Markup]] = {"Sources": [pages.table(_SOURCE_COLUMNS, _source_rows(summaries))]}
    for split, one in statistics.items():
        calls = {"no call": one.calls["none"], "one call": one.calls["one"], "multiple calls": one.calls["several"]}
        tools = dict(islice(one.tools.items(), _MAX_TOOLS))
        more = f", the {_MAX_TOOLS} most frequent of {len(one.tools):,}" if len(one.tools) > _MAX_TOOLS else ""
        sections[split] = [
            pages.figures(figures_of(one)),
            pages.histogram(one.lengths, "Length of conversations", "tokens"),
            pages.bars(calls, "Model turns by calls"),
            pages.bars(tools, f"Calls by tool{more}") if tools else "No calls.",
        ]
    sections["Findings"] = _findings(findings)
    sections["Conversations"] = ["As the model sees them; supervised text is highlighted."]
    for split, documents in shown.items():
        for document in documents:
            marked = (
                Markup("<mark>{}</mark>" if supervised else "{}").format(part)
                for part, supervised in segments(document, tokenizer)
            )
            text = Markup("").join(marked)
            summary = f"{split}: {document['id']}"
            block = Markup("<details open><summary>{}</summary><pre>{}</pre></details>")
            sections["Conversations"].append(block.format(summary, text))
    write_text(file, pages.page("Audit", sections, "Training and evaluation data"))


def _findings(findings: Sequence[Finding]) -> list[str | Markup]:
    if not findings:
        return ["No findings."]
    counts = Counter((finding.split, finding.kind) for finding in findings)
    summary = [[split, kind, KINDS[kind], count] for (split, kind), count in counts.items()]
    blocks: list[str | Markup] = [pages.table(["split", "kind", "meaning", "count"], summary)]
    if len(findings) > _MAX_ROWS:
        blocks.append(f"The first {_MAX_ROWS:,} of {len(findings):,}; audit.json has all of them.")
    blocks.append(
        pages.table(
            ["kind", "split", "row", "id", "detail"],
            [[one.kind, one.split, one.place, one.id, one.detail] for one in findings[:_MAX_ROWS]],
        )
    )
    return blocks
