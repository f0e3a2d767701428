"""The page on row formats: it names every format, and each sample row is read as its format."""

import json
import re
from pathlib import Path

from fc_lightning.data.formats import FORMATS, detect_format, read_row

PAGE = Path("docs/formats.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \| .* \| `(\{.*\})` \|$", PAGE, re.MULTILINE))


def test_every_format_has_a_sample_row_that_is_read():
    assert ROWS.keys() == FORMATS.keys()
    for name, text in ROWS.items():
        row = json.loads(text.replace("\\|", "|"))
        assert detect_format(row) == name
        assert read_row(row).defects == (), name
        assert not [notice for notice in read_row(row).notices if notice[0] == "unread_key"], name
