"""Pages: well-formed, self-contained, escaped, and plots whose marks stand where their values say."""

import re

import pytest
from markupsafe import Markup
from tests.helpers.html_structure import Structure

from fc_lightning.utils import html as pages

HOSTILE = '<script>alert("1 & 2")</script>'


def test_a_page_nests_loads_nothing_and_escapes_everything():
    blocks = [
        HOSTILE,
        pages.figures({HOSTILE: HOSTILE}),
        pages.table([HOSTILE], [[HOSTILE], [3.5], [Markup("<b>bold</b>")]]),
        pages.bars({HOSTILE: 2}, HOSTILE),
        pages.histogram([1, 2, 3], HOSTILE, HOSTILE),
        pages.lines({HOSTILE: [(0, 1), (1, 2)], "other": [(0, 0)]}, HOSTILE, HOSTILE, HOSTILE),
    ]
    html = pages.page(HOSTILE, {HOSTILE: blocks}, HOSTILE)
    structure = Structure(html)
    assert len(structure.all("script")) == 1  # the page's own
    assert len(structure.all("b")) == 1
    assert html.count("alert(") == html.count("&lt;script&gt;alert(&#34;1 &amp; 2&#34;)&lt;/script&gt;") > 20
    assert not structure.all("link")
    assert not re.search(r"""src=|href="[^#]|@import|url\(""", html)


def test_columns_of_numbers_stand_right_with_their_heads():
    rows = [["a/b", 3, "0.250", "12"], ["2", 1234, "–", "1 of 2"], ["c", 0.5, "1.000", ""]]
    structure = Structure(pages.table(["group", "turns", "share", "what"], rows))
    assert [head.get("class") for head in structure.all("th")] == [None, "number", "number", None]
    assert [cell.get("class") for cell in structure.all("td")] == [None, "number", "number", None] * 3
    assert "1,234" in structure.texts
    assert Structure(pages.table(["group"], [])).all("th") == [{"scope": "col"}]


def test_ticks_are_round_and_cover_the_values():
    assert pages.ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert pages.ticks(-3, 12, 4) == [-5, 0, 5, 10, 15]
    assert pages.ticks(7, 7, 5) == [7, 8]
    for low, high in ((0.0031, 0.0049), (1, 1e6), (-2e-5, 3e-5)):
        marks = pages.ticks(low, high, 6)
        assert marks[0] <= low
        assert marks[-1] >= high
        assert 4 <= len(marks) <= 10


def test_points_of_a_line_stand_at_their_values():
    points = [(0, 0.0), (50, 0.5), (100, 1.0)]
    circles = Structure(pages.lines({"a": points}, "title", "step", "share")).all("circle")
    xs, ys = ([float(circle[key]) for circle in circles] for key in ("cx", "cy"))
    assert min(xs[1] - xs[0], ys[0] - ys[1]) > 50  # up is smaller
    assert xs[2] - xs[1] == pytest.approx(xs[1] - xs[0])
    assert ys[1] - ys[2] == pytest.approx(ys[0] - ys[1])


def test_a_histogram_counts_every_value_once():
    values = [0, 1, 1, 5, 9.99, 10, 37]
    html = pages.histogram(values, "lengths", "tokens", bins=4)
    counts = {title: int(count) for title, count in re.findall(r"<title>(.*?): (\d+)</title>", html)}
    assert counts == {"0 to 10": 5, "10 to 20": 1, "20 to 30": 0, "30 to 40": 1, "40 to 50": 0}
    assert Structure(pages.histogram([], "none", "tokens")).all("svg")


def test_bars_are_as_wide_as_their_values():
    html = pages.bars({"a": 10, "b": 5, "c": 0}, "counts")
    assert re.findall(r"width:([\d.]+)%", html) == ["100.0", "50.0", "0.0"]
    assert re.findall(r"width:([\d.]+)%", pages.bars({"a": 10}, "counts", maximum=40)) == ["25.0"]
