"""Formats of one's own: what they return is checked, and an error in one is a line with file and row."""

import json
import sys

import pytest

from fc_lightning.conversation.types import Conversation, Message, ToolCall
from fc_lightning.data import DataError, FunctionCallingDataModule, Source
from fc_lightning.data.formats import RowError, read_row, register_format

BASE = "tests/models/tiny_gemma2"
READER = """
from fc_lightning.conversation.types import Conversation, Message
from fc_lightning.data.formats import RowError


def read(row):
    if row["say"] == "none":
        raise RowError("nothing is said")
    return Conversation("", (Message("user", row["ask"]), Message("assistant", row["say"])))
"""


@pytest.fixture
def reader(tmp_path, monkeypatch):
    (tmp_path / "my_reader_module.py").write_text(READER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_reader_module", raising=False)
    return "my_reader_module:read"


def source(tmp_path, reader, *rows):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(str(tmp_path / "rows.jsonl"), format=reader)


def test_a_row_error_skips_the_row_and_anything_else_names_it(tmp_path, reader):
    rows = source(tmp_path, reader, {"ask": "a", "say": "b"}, {"ask": "a", "say": "none"}, {"say": "b"})
    (first, place), (second, _), (third, broken) = [(row, place) for place, row in rows.rows()]
    assert rows.read(first, place).messages[1].content == "b"
    assert isinstance(rows.read(second, place), RowError)
    with pytest.raises(DataError, match=r"rows\.jsonl:3: the reader of format '.*' failed with KeyError: 'ask'"):
        rows.read(third, broken)


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (Message("assistant", ""), "turn 2: neither an answer nor a call"),
        (Message("assistant", "<tool_call>"), "turn 2: its text contains the tag <tool_call>"),
        (Message("system", "late"), "turn 2: a system message that is not the first"),
    ],
)
def test_what_a_reader_returns_is_checked(registry, message, problem):
    register_format("mine", lambda row: Conversation("x", (Message("user", "a"), message)))
    assert read_row({}, "mine").defects == (problem,)


@pytest.mark.parametrize(
    "message", [Message("user", "\ud800"), Message("assistant", "", None, (ToolCall("f", {"a": {1}}),))]
)
def test_values_that_cannot_be_written_are_refused(registry, message):
    register_format("mine", lambda row: Conversation("x", (message,)))
    with pytest.raises(RowError, match="turn 1: "):
        read_row({}, "mine")


def test_registered_keys_make_others_unread(registry):
    register_format("mine", lambda row: Conversation("x", (Message("user", "a"),)), keys=("ask",))
    assert read_row({"ask": 1, "more": 2, "none": None}, "mine").notices == (("unread_key", "more"),)


def test_prepared_data_follows_the_readers_source(tmp_path, reader):
    rows = source(tmp_path, reader, {"ask": "a", "say": "b"})
    before = rows.fingerprint()
    assert Source(rows.path, format=reader).fingerprint() == before
    (tmp_path / "my_reader_module.py").write_text(READER.replace('row["say"]))', 'row["say"].upper()))'))
    from fc_lightning.data import sources

    sources._reader_source.cache_clear()  # as a new process would begin
    assert rows.fingerprint() != before


def test_a_prepared_folder_says_what_it_was_made_from(tmp_path, reader):
    rows = source(tmp_path, reader, {"ask": "a", "say": "b"})
    data = FunctionCallingDataModule(BASE, [rows], cache_dir=str(tmp_path / "cache"))
    data.setup("fit")
    (file,) = (tmp_path / "cache" / "data").glob("*/made_from.json")
    made_from = json.loads(file.read_text())
    assert made_from["sources"][0]["format"] == reader
    assert {"settings", "tokenizer", "chat_template", "code", "versions"} <= made_from.keys()


def test_prepared_data_follows_the_tokenizers_configuration(tmp_path, reader):
    rows = [source(tmp_path, reader, {"ask": "a", "say": "b"})]
    digests = []
    for bos in ("<bos>", "<pad>"):
        data = FunctionCallingDataModule(BASE, rows, cache_dir=str(tmp_path / "cache"))
        data.template.variables["bos_token"] = bos
        data.setup("fit")
        digests.append(data.prepared["train"].digest)
    assert digests[0] != digests[1]
