"""Self-contained HTML pages for reports, with plots as inline SVG. A page loads nothing from the network.

A page consists of sections, and a section of blocks. A block is either text, which becomes an escaped paragraph, or
``Markup`` from one of the functions below. All of them escape their arguments.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fc_lightning.utils.escaping import escape_markdown


def page(title: str, sections: Mapping[str, Sequence[str | Markup]], subtitle: str = "") -> str:
    """A complete HTML page.

    Args:
        title: Heading of the page.
        sections: The blocks of each section, by its heading.
        subtitle: A line below the title.
    """
    template = _ENVIRONMENT.get_template("page.html.jinja")
    return template.render(title=title, subtitle=subtitle, sections=sections)


def figures(values: Mapping[str, str]) -> Markup:
    """Key figures side by side: the formatted value of each, by its name."""
    return _part("figures", values)


def properties(values: Mapping[str, str], heading: str = "") -> Markup:
    """Named texts below each other."""
    return _part("properties", heading, values)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Markup:
    """A table that is sorted by a column when its name is clicked.

    Args:
        header: Names of the columns.
        rows: Cells of each row. Numbers get thousands separators; text may be a formatted number, or – for no value.
    """
    numeric = [all(map(_is_number, column)) for column in zip(*rows, strict=True)] or [False] * len(header)
    return _part("table", header, numeric, rows)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table for a Markdown file. Its cells are texts without markup; None is an empty cell."""
    head, *body = [["" if cell is None else escape_markdown(str(cell)) for cell in line] for line in (header, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))


def bars(values: Mapping[str, float], title: str, maximum: float | None = None) -> Markup:
    """Horizontal bars, one per name; a bar of value ``maximum``, by default the largest, has the full width."""
    full = maximum or max(values.values(), default=0) or 1
    return _part("bars", title, [(name, 100 * value / full, value) for name, value in values.items()])


def histogram(values: Sequence[float], title: str, label: str, bins: int = 24) -> Markup:
    """A histogram.

    Args:
        values: Any number of values.
        title: Title of the plot.
        label: Label of the x axis: what the values are, with their unit.
        bins: Approximate number of bars; the width of a bin is a round number.
    """
    edges = ticks(min(values, default=0), max(values, default=1), bins)
    low, width = edges[0], edges[1] - edges[0]
    counts = [0] * len(edges)
    for value in values:
        counts[int((value - low) / width)] += 1
    drawn = [(low + index * width, low + (index + 1) * width, count) for index, count in enumerate(counts)]
    return _part("histogram", _Axes((low, drawn[-1][1]), (0, max(counts))), drawn, title, label)


def lines(series: Mapping[str, Sequence[tuple[float, float]]], title: str, x_label: str, y_label: str) -> Markup:
    """A line plot.

    Args:
        series: Points ``(x, y)`` of each line, in order of x, by the line's name.
        title: Title of the plot.
        x_label: What x is, with its unit.
        y_label: What y is, with its unit.
    """
    xs, ys = zip(*(point for line in series.values() for point in line), strict=True)
    return _part("lines", _Axes((min(xs), max(xs)), (min(ys), max(ys))), series, title, x_label, y_label)


def turns(compared: Sequence[Any]) -> Markup:
    """Generated turns next to the reference turns, with filters and a search field.

    Args:
        compared: Objects with the attributes of :class:`fc_lightning.evaluation.report_turns.ComparedTurn`.
    """
    names = dict.fromkeys(name for one in compared for name in one.tags)
    filters = {name: Counter(one.tags[name] for one in compared if name in one.tags) for name in names}
    return _part("turns", filters, [(one, [one.tags.get(name, "") for name in names]) for one in compared])


@dataclass(frozen=True)
class _Axes:
    """The coordinates of values in a plot."""

    xs: tuple[float, float]
    ys: tuple[float, float]
    left: int = 76
    right: int = 456
    top: int = 12
    bottom: int = 216

    @cached_property
    def x_ticks(self) -> list[float]:
        return ticks(*self.xs, 6)

    @cached_property
    def y_ticks(self) -> list[float]:
        return ticks(*self.ys, 5)

    def x(self, value: float) -> float:
        first, *_, last = self.x_ticks
        return round(self.left + (self.right - self.left) * (value - first) / (last - first), 1)

    def y(self, value: float) -> float:
        first, *_, last = self.y_ticks
        return round(self.bottom - (self.bottom - self.top) * (value - first) / (last - first), 1)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Evenly spaced round numbers that cover a range.

    Args:
        low: Lower end of the range.
        high: Upper end of the range.
        about: Approximate number of intervals.

    Example:
        >>> ticks(3, 97, 5)
        [0, 20, 40, 60, 80, 100]
    """
    raw = (high - low) / about or 1
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999) * power
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """A number as text, with thousands separators; a fraction has four significant digits.

    Example:
        >>> number(1234567), number(0.123456), number(2.0)
        ('1,234,567', '0.1235', '2')
    """
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


_ENVIRONMENT = Environment(
    loader=PackageLoader("fc_lightning.utils", "."),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
_ENVIRONMENT.filters["number"] = number


def _part(name: str, *arguments: Any) -> Markup:
    return getattr(_ENVIRONMENT.get_template("parts.html.jinja").module, name)(*arguments)


def _is_number(cell: Any) -> bool:
    if isinstance(cell, bool):
        return False
    return isinstance(cell, int | float) or bool(re.fullmatch(r"–|-?[\d,.]*\d", str(cell)))
