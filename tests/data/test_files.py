"""Kinds of files: every one gives the same rows, and what cannot be read is named."""

import codecs
import gzip
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from fc_lightning.data import DataError, Source
from fc_lightning.data.formats import RowError

TOOL = {
    "name": "ferry",
    "description": "",
    "parameters": {"type": "object", "properties": {"port": {"type": "string"}}},
}


def row(number, **arguments):
    call = {"type": "function", "function": {"name": "ferry", "arguments": arguments or {"port": f"Skye {number}"}}}
    messages = [
        {"role": "user", "content": f"Skye {number}?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    return {"id": f"row{number}", "messages": messages, "tools": [TOOL]}


ROWS = [row(number) for number in range(3)]
LINES = "".join(json.dumps(one) + "\n" for one in ROWS)


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def table(delimiter=","):
    def field(value):
        return '"' + json.dumps(value).replace('"', '""') + '"'

    lines = [delimiter.join(("id", "messages", "tools"))]
    lines += [delimiter.join((one["id"], field(one["messages"]), field(one["tools"]))) for one in ROWS]
    return "\n".join(lines) + "\n"


FILES = {
    "rows.jsonl": LINES.encode(),
    "rows.JSONL": LINES.encode(),
    "rows.ndjson": LINES.encode(),
    "rows.json": json.dumps(ROWS).encode(),
    "lines.json": LINES.encode(),
    "data.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "splits.json": json.dumps({"train": ROWS, "test": [row(9)]}).encode(),
    "bom.jsonl": codecs.BOM_UTF8 + LINES.encode(),
    "bom.json": codecs.BOM_UTF8 + json.dumps(ROWS).encode(),
    "crlf.jsonl": LINES.replace("\n", "\r\n").encode(),
    "rows.jsonl.gz": gzip.compress(LINES.encode()),
    "rows.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "rows.jsonl.zst": zstd(LINES.encode()),
    "rows.csv": table().encode(),
    "rows.tsv": table("\t").encode(),
    "rows.csv.gz": gzip.compress(table().encode()),
}


def conversations(path, **settings):
    source = Source(str(path), **settings)
    return [source.read(one, place) for place, one in source.rows()]


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_conversations(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    read = conversations(tmp_path / name)
    assert [one.id for one in read] == ["row0", "row1", "row2"]
    assert [one.messages[1].tool_calls[0].arguments for one in read] == [{"port": f"Skye {n}"} for n in range(3)]
    assert not any(one.defects or one.notices for one in read)


def test_columns_of_arrows_json_type_and_maps(tmp_path):
    messages = pa.array([[json.dumps(m) for m in one["messages"]] for one in ROWS], pa.list_(pa.string()))
    tools = pa.array([json.dumps(one["tools"]) for one in ROWS])
    as_json = pa.ExtensionArray.from_storage(pa.json_(), tools)
    parquet.write_table(pa.table({"messages": messages, "tools": as_json}), tmp_path / "json.parquet")
    assert [one.messages[1].tool_calls[0].arguments["port"] for one in conversations(tmp_path / "json.parquet")] == [
        "Skye 0",
        "Skye 1",
        "Skye 2",
    ]
    kind = pa.struct([("name", pa.string()), ("arguments", pa.map_(pa.string(), pa.string()))])
    answers = pa.array([[{"name": "ferry", "arguments": [("port", "Skye")]}]], pa.list_(kind))
    parquet.write_table(pa.table({"query": ["?"], "answers": answers}), tmp_path / "map.parquet")
    assert conversations(tmp_path / "map.parquet")[0].messages[1].tool_calls[0].arguments == {"port": "Skye"}


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_nulls_that_a_table_filled_in_are_not_arguments(tmp_path, kind):
    nullable = {"name": "ferry", "parameters": {"properties": {"port": {}, "day": {"type": ["string", "null"]}}}}
    rows = [row(0, port="Skye", day=None), row(1, port="Mull", day="today"), {**row(2, port=None, day=None)}]
    rows[2]["tools"] = json.dumps([nullable])
    for one in rows[:2]:
        one["tools"] = json.dumps([TOOL])
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    else:
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = [one.messages[1].tool_calls[0].arguments for one in conversations(tmp_path / f"rows.{kind}")]
    assert arguments == [{"port": "Skye"}, {"port": "Mull", "day": "today"}, {"day": None}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", LINES.encode("utf-16"), "encoded as UTF-16; convert it to UTF-8"),
        ("a.json", LINES.encode("utf-16-le"), "not UTF-8 text, perhaps UTF-16"),
        ("a.csv", "a,b\n".encode("utf-32"), "encoded as UTF-32"),
        ("a.json", b"{oops", "not JSON"),
        ("a.json", b"7", "expected a list of rows, got int"),
        ("a.json", b'{"test": [], "validation": []}', "no split 'train'; available: test, validation"),
        ("a.jsonl.gz", b"no gzip at all", "cannot read the file"),
        ("a.jsonl.zst", zstd(LINES.encode())[:-9], "cannot read the file"),
        ("a.xlsx", b"PK", r"cannot read \.xlsx; supported: .*\.jsonl"),
        ("README", b"?", "cannot read a file without a suffix"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        conversations(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_object_with_a_key_twice_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"messages": [], "messages": []}\n')
    ((_, found),) = Source(str(tmp_path / "a.jsonl")).rows()
    assert isinstance(found, RowError)
    assert "has the key 'messages' twice" in str(found)


def test_a_table_with_a_field_too_many_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("id,messages\n1,[],extra\n")
    ((_, found),) = Source(str(tmp_path / "a.csv")).rows()
    assert "does not have as many fields" in str(found)


def test_limits(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES)
    limited = Source(str(tmp_path / "a.jsonl"), limit=2)
    assert limited.limit_note() == f"{tmp_path / 'a.jsonl'}: first 2 rows of 3 (`limit`)"
    assert Source(str(tmp_path / "a.jsonl"), limit=3).limit_note() == ""
    assert Source(str(tmp_path / "a.jsonl")).limit_note() == ""
    for limit in (0, -3):
        with pytest.raises(DataError, match=f"`limit` must be at least 1, not {limit}"):
            Source("a.jsonl", limit=limit)


def test_archives_are_not_rows(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jsonl", LINES)
    with pytest.raises(DataError, match=r"cannot read \.zip"):
        conversations(tmp_path / "a.zip")
    with pytest.raises(DataError, match=r"the folder has no \.json"):
        conversations(tmp_path)


def test_a_path_that_is_not_there(tmp_path):
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    for path in (tmp_path / "a.jsonl", tmp_path / "link.jsonl", Path("a.jsonl.gz")):
        with pytest.raises(DataError, match="file or folder not found"):
            conversations(path)


ONCE, TWICE = '{"id": "a", "query": "Hi"}', '{"id": "b", "tools": [{"name": "f", "x": {"n": 1, "n": 2}}]}'


@pytest.mark.parametrize("text", [f"[{ONCE}, {TWICE}]", f'{{"data": [{ONCE}, {TWICE}]}}', f"{ONCE}\n{TWICE}\n"])
def test_a_key_that_an_object_has_twice_is_an_error_of_its_row_in_json_files_too(tmp_path, text):
    file = tmp_path / "rows.json"
    file.write_text(text)
    good, bad = (row for _, row in Source(str(file)).rows())
    assert good == {"id": "a", "query": "Hi"}
    assert isinstance(bad, RowError)
    assert "the key 'n' twice" in str(bad)


def test_rows_under_a_key_that_a_file_has_twice_are_an_error_of_the_file(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(f'{{"data": [{ONCE}], "data": []}}')
    with pytest.raises(DataError, match=r"rows\.json: the object has the key 'data' twice"):
        list(Source(str(file)).rows())
