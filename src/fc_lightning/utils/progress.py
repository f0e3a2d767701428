"""Progress of long work: a bar in a terminal, a line every 30 seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

INTERVAL = 30.0  # seconds between lines


class Counter:
    """Counts work that is done, and describes it.

    Args:
        title: What is being done.
        total: The number of units to do; None if it is unknown.
        unit: Their name, in the plural.
    """

    def __init__(self, title: str, total: int | None, unit: str):
        self.title = title
        self.total = total
        self.unit = unit
        self.done = 0
        self.note = ""
        self._started = self._last_line = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count units that are done; the note describes the state of the work."""
        self.done += count
        self.note = note or self.note

    def describe(self, with_time_left: bool = True) -> str:
        """One line: ``validation: 40/200 turns, exact match 0.35, 4:10 left``."""
        total = f"/{self.total:,}" if self.total is not None else ""
        parts = [f"{self.title}: {self.done:,}{total} {self.unit}", self.note]
        if with_time_left and self.total is not None and 0 < self.done < self.total:
            seconds = (time.monotonic() - self._started) / self.done * (self.total - self.done)
            parts.append(f"{int(seconds) // 60}:{int(seconds) % 60:02} left")
        return ", ".join(filter(None, parts))

    def print_if_due(self, interval: float = INTERVAL) -> None:
        """Print the line if the last one is long enough ago."""
        if time.monotonic() - self._last_line >= interval:
            self._last_line = time.monotonic()
            print(self.describe(), flush=True)


@contextmanager
def track(title: str, total: int | None, unit: str, interval: float = INTERVAL) -> Iterator[Counter]:
    """Show the progress of the work inside the block, which calls ``advance`` of the counter.

    Args:
        title: What is being done.
        total: The number of units to do; None if it is unknown.
        unit: Their name, in the plural.
        interval: Seconds between lines where there is no terminal.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    remaining = (TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    bar = Progress(*columns, *remaining, transient=True) if sys.stdout.isatty() else None
    try:
        yield _Tracker(title, total, unit, interval, bar)
    finally:
        if bar is not None:
            bar.stop()


class _Tracker(Counter):
    """Shows itself: in a bar, or without one as lines."""

    def __init__(self, title: str, total: int | None, unit: str, interval: float, bar: Progress | None):
        super().__init__(title, total, unit)
        self._interval = interval
        self._bar = bar
        if bar is not None:
            self._task = bar.add_task(title, total=total, note="")

    def advance(self, count: int = 1, note: str = "") -> None:
        super().advance(count, note)
        if self._bar is None:
            self.print_if_due(self._interval)
            return
        self._bar.start()  # its thread starts when work is done: processes for the work may be forked before
        self._bar.update(self._task, completed=self.done, note=self.note)


def format_duration(seconds: float) -> str:
    """A duration in words.

    Example:
        >>> format_duration(12.3), format_duration(384), format_duration(7500)
        ('12 s', '6 min 24 s', '2 h 5 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
