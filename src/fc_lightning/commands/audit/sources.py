"""Source summaries for an audit: detected format, confidence, and row counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fc_lightning.commands.audit.findings import Finding
from fc_lightning.conversation.types import Conversation
from fc_lightning.data.files import DataError, read_file
from fc_lightning.data.sources import Source


@dataclass
class SourceSummary:
    """What was read from a source."""

    split: str
    path: str
    named: str | None = None  # the format that the configuration names, if any
    rows: int = 0
    skipped: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    tools: int = 0  # rows with tools
    suspicious: int = 0  # rows with a text that looks like a call and was read as an answer
    findings: int = 0

    def add(self, conversation: Conversation) -> None:
        """Count a conversation."""
        self.formats[conversation.format] += 1
        self.calls += sum(len(message.tool_calls) for message in conversation.messages)
        self.tools += bool(conversation.tools)
        self.suspicious += any(kind == "possible_call" for kind, _ in conversation.notices)

    @property
    def format(self) -> str:
        """The format, or the formats with their fractions."""
        total = sum(self.formats.values())
        if self.named or len(self.formats) < 2:
            return self.named or next(iter(self.formats), "none")
        return ", ".join(f"{name} {count / total:.0%}" for name, count in self.formats.most_common())

    @property
    def confidence(self) -> str:
        """How certain it is that the rows are read as intended."""
        if not self.formats:
            return "none of its rows can be used" if self.rows else "no rows in this split"
        if not (self.calls or self.tools):
            return "low: no tool and no call"
        if self.suspicious > 0.05 * self.rows:
            return "low: texts look like calls"
        if self.skipped > 0.5 * self.rows:
            return "low: most rows cannot be used"
        if len(self.formats) > 1 and not self.named:
            return "medium: several formats"
        if self.skipped:
            return f"medium: {self.skipped:,} rows cannot be used"
        return "named" if self.named else "high"

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON-serializable values."""
        content = {**asdict(replace(self, formats=Counter())), "formats": dict(self.formats)}
        return {**content, "format": self.format, "confidence": self.confidence}


def readable_sources(split: str, sources: Sequence[Source]) -> tuple[list[Source], list[Finding]]:
    """The sources that can be read, and a finding for each file that cannot.

    A source with such a file is replaced by its other files: an audit reports all problems at once.
    """
    readable: list[Source] = []
    findings: list[Finding] = []
    for source in sources:
        try:
            problems = dict(_unreadable_files(source))
        except DataError as error:
            findings.append(
                Finding("unreadable_source", split, source.path, "", str(error).removeprefix(f"{source.path}: "))
            )
            continue
        findings += [Finding("unreadable_source", split, str(file), "", text) for file, text in problems.items()]
        if not problems:
            readable.append(source)
            continue
        files = [file for file in source.local_files() if file not in problems]
        readable += [replace(source, path=str(file), name=None) for file in files]
    return readable, findings


def _unreadable_files(source: Source) -> Iterator[tuple[Path, str]]:
    for file in source.local_files():
        if source.is_saved():
            continue
        try:
            for _ in read_file(file, source.split):
                pass
        except DataError as error:
            yield file, str(error).removeprefix(f"{file}: ")


def without_calls(summaries: Sequence[SourceSummary]) -> list[Finding]:
    """A finding for each source in which no row has a tool or a call."""
    return [
        Finding(
            "no_calls",
            one.split,
            one.path,
            "",
            f"none of the {one.rows - one.skipped:,} conversations has a tool or call",
        )
        for one in summaries
        if one.rows > one.skipped and not (one.calls or one.tools)
    ]
