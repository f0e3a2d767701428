"""Self-contained HTML pages for reports, with plots as inline SVG. A page loads nothing from the network.

A page consists of sections, and a section of blocks. A block is either text, which becomes an escaped paragraph, or
``Markup`` from one of the functions below. All of them escape their arguments.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fc_lightning.utils.escaping import escape_markdown

_ENVIRONMENT = Environment(
    loader=PackageLoader("fc_lightning.utils", "."),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
# Coordinates inside a plot. The page scales a plot, including its text, to the width of the column.
_WIDTH, _HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 456, 12, 216
_NUM_COLORS = 6  # classes c0 to c5 of the page's style sheet


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
    cells = (Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, value) for name, value in values.items())
    return Markup('<dl class="figures">{}</dl>').format(Markup("").join(cells))


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Markup:
    """A table that is sorted by a column when its name is clicked.

    Args:
        header: Names of the columns.
        rows: Cells of each row. Numbers get thousands separators; text may be a formatted number, or – for no value.
    """
    numeric = [all(map(_is_number, column)) for column in zip(*rows, strict=True)] or [False] * len(header)
    classes = [Markup(' class="number"') if is_number else "" for is_number in numeric]
    head = Markup("").join(
        Markup('<th scope="col"{}><button>{}</button></th>').format(*column)
        for column in zip(classes, header, strict=True)
    )
    body = Markup("\n").join(Markup("<tr>{}</tr>").format(Markup("").join(map(_cell, classes, row))) for row in rows)
    return Markup('<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>\n{}\n</tbody></table></div>').format(
        head, body
    )


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table for a Markdown file. Its cells are texts without markup; None is an empty cell."""
    head, *body = [["" if cell is None else escape_markdown(str(cell)) for cell in line] for line in (header, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))


def bars(values: Mapping[str, float], title: str, maximum: float | None = None) -> Markup:
    """Horizontal bars, one per name; a bar of value ``maximum``, by default the largest, has the full width."""
    full = maximum or max(values.values(), default=0) or 1
    rows = (
        Markup(
            '<tr><th scope="row">{}</th><td class="bar"><div style="width:{:.1f}%"></div></td>'
            '<td class="number">{}</td></tr>'
        ).format(name, 100 * value / full, number(value))
        for name, value in values.items()
    )
    return Markup('<table class="bars"><caption>{}</caption>{}</table>').format(title, Markup("\n").join(rows))


def histogram(values: Sequence[float], title: str, label: str, bins: int = 24) -> Markup:
    """A histogram.

    Args:
        values: Any number of values.
        title: Title of the plot.
        label: Label of the x axis: what the values are, with their unit.
        bins: Approximate number of bars; the width of a bin is a round number.
    """
    marks = ticks(min(values, default=0), max(values, default=1), bins)
    low, width = marks[0], marks[1] - marks[0]
    counts = [0] * len(marks)
    for value in values:
        counts[int((value - low) / width)] += 1
    plot = _Plot((low, low + width * len(counts)), (0, max(counts)), title, label, "number")
    shape = Markup(
        '<rect class="c0 fill" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
    )
    for index, count in enumerate(counts):
        left, right = plot.x(low + index * width), plot.x(low + (index + 1) * width)
        tooltip = f"{number(low + index * width)} to {number(low + (index + 1) * width)}: {count:,}"
        height = plot.y(0) - plot.y(count)
        plot.shapes.append(shape.format(left, plot.y(count), max(right - left - 1, 1), height, tooltip))
    return plot.draw()


def lines(series: Mapping[str, Sequence[tuple[float, float]]], title: str, x_label: str, y_label: str) -> Markup:
    """A line plot.

    Args:
        series: Points ``(x, y)`` of each line, in order of x, by the line's name.
        title: Title of the plot.
        x_label: What x is, with its unit.
        y_label: What y is, with its unit.
    """
    points = [point for line in series.values() for point in line] or [(0, 0)]
    xs, ys = zip(*points, strict=True)
    plot = _Plot((min(xs), max(xs)), (min(ys), max(ys)), title, x_label, y_label)
    for index, (name, line) in enumerate(series.items()):
        color = index % _NUM_COLORS
        path = " ".join(f"{plot.x(x):.1f},{plot.y(y):.1f}" for x, y in line)
        plot.shapes.append(Markup('<polyline class="c{} line" points="{}"/>').format(color, path))
        for x, y in line:
            tooltip = f"{name}: {number(y)} at {number(x)}"
            circle = Markup('<circle class="c{} fill" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle>')
            plot.shapes.append(circle.format(color, plot.x(x), plot.y(y), tooltip))
    key = (Markup('<li class="c{}">{}</li>').format(index % _NUM_COLORS, name) for index, name in enumerate(series))
    return plot.draw(Markup('<ul class="key">{}</ul>').format(Markup("").join(key)) if len(series) > 1 else "")


class _Plot:
    """Axes with ticks, and the shapes to draw in them."""

    def __init__(self, xs: tuple[float, float], ys: tuple[float, float], title: str, x_label: str, y_label: str):
        self.x_ticks, self.y_ticks = ticks(*xs, 6), ticks(*ys, 5)
        self.title, self.x_label, self.y_label = title, x_label, y_label
        self.shapes: list[Markup] = []

    def x(self, value: float) -> float:
        first, last = self.x_ticks[0], self.x_ticks[-1]
        return _LEFT + (_RIGHT - _LEFT) * (value - first) / (last - first)

    def y(self, value: float) -> float:
        first, last = self.y_ticks[0], self.y_ticks[-1]
        return _BOTTOM - (_BOTTOM - _TOP) * (value - first) / (last - first)

    def draw(self, key: str | Markup = "") -> Markup:
        grid = Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>')
        text = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
        parts = [grid.format(_LEFT, _RIGHT, self.y(tick), self.y(tick)) for tick in self.y_ticks]
        parts += [text.format(_LEFT - 6, self.y(tick) + 4, "end", number(tick)) for tick in self.y_ticks]
        parts += [text.format(self.x(tick), _BOTTOM + 18, "middle", number(tick)) for tick in self.x_ticks]
        parts += [text.format((_LEFT + _RIGHT) / 2, _HEIGHT - 6, "middle", self.x_label)]
        middle = (_TOP + _BOTTOM) / 2
        rotated = Markup('<text transform="translate(13 {:.1f}) rotate(-90)" text-anchor="middle">{}</text>')
        parts += [rotated.format(middle, self.y_label), *self.shapes]
        svg = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">\n{}\n</svg>').format(
            _WIDTH, _HEIGHT, f"{self.title}: {self.y_label} by {self.x_label}", Markup("\n").join(parts)
        )
        return Markup("<figure><figcaption>{}</figcaption>{}{}</figure>").format(self.title, key, svg)


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


def _is_number(cell: Any) -> bool:
    if isinstance(cell, bool):
        return False
    return isinstance(cell, int | float) or bool(re.fullmatch(r"–|-?[\d,.]*\d", str(cell)))


def _cell(attributes: str | Markup, value: Any) -> Markup:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Markup('<td{} data-value="{}">{}</td>').format(attributes, value, number(value))
    return Markup("<td{}>{}</td>").format(attributes, value)
