"""Folders of datasets: files belong to splits by name, README or LLaMA-Factory's description."""

import json

import pytest

from fc_lightning.data import DataError, Source
from fc_lightning.data.dataset_folders import split_of


def row(name):
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    return {"id": name, "conversations": turns}


def write(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row(name)) + "\n" for name in names))


def ids(folder, **settings):
    return [one["id"] for _, one in Source(str(folder), **settings).rows()]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("data/test-00000-of-00001.parquet", "test"),
        ("test/part1.jsonl", "test"),
        ("my_valid.jsonl", "validation"),
        ("dev.json", "validation"),
        ("Testing.jsonl", "test"),
        ("latest.jsonl", "train"),
        ("contest_rows.jsonl", "train"),
        ("rows.jsonl", "train"),
    ],
)
def test_the_split_of_a_file_name(tmp_path, path, split):
    assert split_of(tmp_path.relative_to(tmp_path) / path) == split


def test_files_belong_to_splits_by_their_names(tmp_path):
    write(tmp_path / "data" / "train-0.jsonl", "a")
    write(tmp_path / "data" / "train-1.jsonl", "b")
    write(tmp_path / "data" / "test-0.jsonl", "c")
    write(tmp_path / "more.jsonl", "d")
    assert ids(tmp_path) == ["a", "b", "d"]
    assert ids(tmp_path, split="test") == ["c"]
    with pytest.raises(DataError, match="no split 'validation'; available: test, train"):
        ids(tmp_path, split="validation")


def test_a_folder_of_one_split_is_read_whole(tmp_path):
    write(tmp_path / "test" / "a.jsonl", "a")
    assert ids(tmp_path) == ids(tmp_path, split="test") == ["a"]


def test_a_json_file_with_splits_as_keys(tmp_path):
    row = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    splits = {"train": [{"id": "a", "conversations": row}], "validation": [{"id": "b", "conversations": row}]}
    (tmp_path / "data.json").write_text(json.dumps(splits))
    assert (ids(tmp_path), ids(tmp_path, split="validation")) == (["a"], ["b"])


def test_training_rows_are_not_read_as_another_split(tmp_path):
    write(tmp_path / "train-0.jsonl", "a")
    with pytest.raises(DataError, match="no split 'validation'; available: train"):
        ids(tmp_path, split="validation")


README = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: "first/*.jsonl"
  - split: test
    path: ["second/a.jsonl"]
- config_name: small
  data_files: second/b.jsonl
---
# Rows
"""


def test_the_configuration_of_a_readme(tmp_path):
    write(tmp_path / "first" / "test.jsonl", "a")
    write(tmp_path / "second" / "a.jsonl", "b")
    write(tmp_path / "second" / "b.jsonl", "c")
    (tmp_path / "README.md").write_text(README)
    assert ids(tmp_path) == ["a"]
    assert ids(tmp_path, split="test") == ["b"]
    assert ids(tmp_path, name="small") == ["c"]
    with pytest.raises(DataError, match="set `name` to one of its configurations: default, small"):
        ids(tmp_path, name="large")
    (tmp_path / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(DataError, match="front matter is not valid YAML"):
        ids(tmp_path)


def test_what_is_beside_the_rows_is_not_read(tmp_path):
    write(tmp_path / "a.jsonl", "a")
    write(tmp_path / ".ipynb_checkpoints" / "a-checkpoint.jsonl", "no")
    write(tmp_path / "__MACOSX" / "a.jsonl", "no")
    (tmp_path / "folder.jsonl").mkdir()
    write(tmp_path / "folder.jsonl" / "b.jsonl", "b")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert ids(tmp_path) == ["a", "b"]
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match=r"c\.jsonl: broken link"):
        ids(tmp_path)


def test_llama_factorys_description(tmp_path):
    info = {
        "mine": {
            "file_name": "rows/mine.json",
            "formatting": "sharegpt",
            "columns": {"messages": "talk", "tools": "functions_offered"},
            "tags": {"role_tag": "who", "content_tag": "text", "user_tag": "customer", "assistant_tag": "clerk"},
        },
        "remote": {"hf_hub_url": "somebody/rows"},
        "lost": {"file_name": "lost.json"},
    }
    turns = [{"who": "customer", "text": "Hi"}, {"who": "clerk", "text": "Ho"}]
    tools = json.dumps([{"name": "f", "description": "", "parameters": {}}])
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "mine.json").write_text(json.dumps([{"talk": turns, "functions_offered": tools}]))
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    source = Source(str(tmp_path), name="mine")
    ((place, one),) = source.rows()
    conversation = source.read(one, place)
    assert [(m.role, m.content) for m in conversation.messages] == [("user", "Hi"), ("assistant", "Ho")]
    assert [tool.name for tool in conversation.tools] == ["f"]
    for name, message in [
        (None, "set `name` to one of its datasets: mine, remote, lost"),
        ("other", "no dataset 'other'; available: mine"),
        ("remote", "set `path: somebody/rows`"),
        ("lost", "no .json"),
    ]:
        with pytest.raises(DataError, match=message):
            ids(tmp_path, name=name)
    (tmp_path / "dataset_info.json").write_text("{broken")
    with pytest.raises(DataError, match=r"dataset_info\.json: not JSON"):
        ids(tmp_path)
