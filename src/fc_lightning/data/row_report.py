"""The row report: which rows were used, skipped or cut, and why."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fc_lightning.data.files import DataError
from fc_lightning.utils.escaping import printable_text

_MAX_NOTICES = 10  # in the printed report


@dataclass
class RowReport:
    """Counts of rows, documents and tokens; each list has entries ``[place, id, reason]``."""

    rows: int = 0
    documents: int = 0
    tokens: int = 0
    supervised: int = 0
    prompts: int = 0
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    # Rows rendered verbatim although some calls cannot be read; they have no prompts
    flawed: list[tuple[str, str, str]] = field(default_factory=list)
    # Rows dropped because they are longer than `max_length`
    too_long: list[tuple[str, str, str]] = field(default_factory=list)
    cut: list[tuple[str, str, str]] = field(default_factory=list)  # rows cut after a turn
    # Number of rows with each notice, such as `unread_key: metadata`
    notices: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)  # what else to know, a line each

    def add(self, other: RowReport) -> None:
        """Add the report of other rows."""
        for name, value in vars(other).items():
            setattr(self, name, operator.iadd(getattr(self, name), value))

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-serializable values."""
        return {**vars(self), "notices": dict(self.notices)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> RowReport:
        """The report that :meth:`to_dict` was made from."""
        return cls(**{**content, "notices": Counter(content["notices"])})

    def note(self, notices: Iterable[tuple[str, str]]) -> None:
        """Count a row's notices; details that are specific to a row are omitted."""
        self.notices.update({f"{kind}: {detail}" if kind == "unread_key" else kind for kind, detail in notices})

    def check(self, name: str, max_unreadable: float) -> None:
        """Raise if too many rows are unreadable.

        Raises:
            DataError: If a larger fraction of rows than ``max_unreadable`` was skipped.
        """
        if len(self.skipped) > max_unreadable * self.rows:
            cases = "".join(f"\n  {_line(case)}" for case in self.skipped[:5])
            raise DataError(
                f"`data.{name}`: {len(self.skipped):,} of {self.rows:,} rows cannot be read, more than "
                f"{max_unreadable:.1%} (`data.max_unreadable`); `audit` lists all of them; first errors:{cases}"
            )

    def lines(self, name: str, examples: int = 3) -> list[str]:
        """The report as text, with the first few cases of each kind."""
        share = self.supervised / self.tokens if self.tokens else 0.0
        out = [
            f"{name}: {self.documents:,} of {self.rows:,} rows, {self.tokens:,} tokens, {share:.1%} of them supervised"
            + (f", {self.prompts:,} turns to generate" if self.prompts else "")
        ]
        out += self.problem_lines(examples)
        out += [f"  {count:,} rows: {notice}" for notice, count in self.notices.most_common(_MAX_NOTICES)]
        return out + [f"  {remark}" for remark in self.remarks]

    def problem_lines(self, examples: int = 3) -> list[str]:
        """The rows that are not used, or not as they are, with the first few cases of each kind."""
        out: list[str] = []
        for what in ("skipped", "flawed", "too_long", "cut"):
            cases = getattr(self, what)
            out += [f"  {len(cases):,} {what.replace('_', ' ')}"] if cases else []
            out += [f"    {_line(case)}" for case in cases[:examples]]
            out += ["    …"] if len(cases) > examples else []
        return out


def _line(case: tuple[str, str, str]) -> str:
    """A row's place, id and problem on one line."""
    place, id, reason = case
    return printable_text(f"{place} ({id}): {reason}", one_line=True)
