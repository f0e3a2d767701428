"""Texts of rows neither control a terminal nor become markup in a Markdown file."""

import markdown
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers.html_structure import Structure

from fc_lightning.utils.escaping import escape_markdown, printable_text
from fc_lightning.utils.html import markdown_table

HOSTILE = [
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "a\rb",
    "\u202egnp.exe",
    "\ud800",
    "<script>alert(1)</script>",
    "a\n\n# heading\n- item",
    "a | b \\| c",
    "[link](javascript:alert(1)) ![x](http://a/b)",
    "**bold** _it_ `code` ~~no~~ &lt;b&gt;",
]


@given(st.text())
def test_printable_text_has_no_control_characters(text):
    printed = printable_text(text)
    assert all(char >= " " and not "\x7f" <= char <= "\x9f" for char in printed if char not in "\n\t")
    assert "\n" not in printable_text(text, one_line=True)
    assert printable_text("é 🙂\n\tok") == "é 🙂\n\tok"


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_the_text_and_nothing_else(text):
    html = markdown.markdown(f"x {escape_markdown(text)} x")
    structure = Structure(html)
    assert [tag for tag, _ in structure.tags] == ["p"]
    assert "".join(structure.texts) == f"x {printable_text(' '.join(text.splitlines()))} x"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_of_a_markdown_table_is_one_cell(text):
    table = markdown_table(["a", text], [[text, 1], [None, text]])
    structure = Structure(markdown.markdown(table, extensions=["tables"]))
    tags = [tag for tag, _ in structure.tags]
    assert tags == ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td", "tr", "td", "td"]
