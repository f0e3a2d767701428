"""Sources and preparation: what is read, held out, cut, skipped and kept for the next run."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from fc_lightning.conversation.types import Conversation, Message, Tool, ToolCall
from fc_lightning.data import DataError, FunctionCallingDataModule, Source

BASE = "tests/models/tiny_gemma2"
TRAIN = "data/quickstart/train.jsonl"


def prepared(tmp_path: Path, split: str = "train", **settings):
    """A split as it is prepared with the given settings."""
    data = FunctionCallingDataModule(BASE, cache_dir=str(tmp_path / "cache"), **settings)
    data.setup(None)
    return data.prepared[split]


def ids(tmp_path: Path, split: str = "train", **settings) -> list[str]:
    return prepared(tmp_path, split, **settings).documents["id"][:]


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def row(number: int, question: str = "Hi?", answer: str = "Hello.") -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": f"row{number}", "conversations": turns}


def test_json_jsonl_and_parquet_are_one(tmp_path):
    rows = [row(number) for number in range(5)]
    write(tmp_path / "rows.jsonl", rows)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    read = [ids(tmp_path, train=[Source(str(tmp_path / f"rows.{end}"))]) for end in ("json", "jsonl", "parquet")]
    assert read == [[f"row{number}" for number in range(5)]] * 3


def test_a_fraction_is_held_out_and_near_copies_stay_on_one_side(tmp_path):
    settings = {"train": [Source(TRAIN)], "validation": 0.2}
    kept, held_out = ids(tmp_path, **settings), ids(tmp_path, "validation", **settings)
    everything = ids(tmp_path, train=[Source(TRAIN)])
    assert sorted(kept + held_out) == sorted(everything)
    assert 0.1 < len(held_out) / len(everything) < 0.3
    topics = ["rivers", "bridges", "violins", "comets", "orchids", "turtles", "glaciers"]
    rows = [
        row(10 * n + copy, f"About {topic}, {topic[:-1]}s, all the {topic} and more {topic}{'!' * copy}")
        for n, topic in enumerate(topics)
        for copy in range(3)
    ]
    file = write(tmp_path / "copies.jsonl", [*rows, "{not json"])
    settings = {"train": [Source(str(file))], "validation": 0.5, "max_unreadable": 1.0}
    sides = [{int(id[3:]) // 10 for id in ids(tmp_path, split, **settings)} for split in ("train", "validation")]
    assert sides[0].isdisjoint(sides[1])
    assert sides[0] | sides[1] == set(range(len(topics)))
    assert all(sides)


def test_too_many_unreadable_rows_stop_training_but_not_the_audit(tmp_path):
    file = write(tmp_path / "rows.jsonl", [row(0), row(1), row(2), "{not json"])

    def data(limit):
        return FunctionCallingDataModule(
            BASE, [Source(str(file))], max_unreadable=limit, cache_dir=str(tmp_path / "cache")
        )

    with pytest.raises(DataError, match=r"`data.train`: 1 of 4 rows cannot be read, more than 5.0%") as stop:
        data(0.05).setup("fit")
    assert "rows.jsonl:4 (rows_4): not JSON" in str(stop.value)
    data(0.25).setup("fit")
    data(0.05).setup(None)


TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "F.", "parameters": {"type": "object"}}},
    {
        "type": "function",
        "function": {"name": "g", "parameters": {"type": "object", "required": ["b"]}},
    },
]


def call_rows(how):
    """The same two conversations as OpenAI's messages (each with other arguments), xLAM, ShareGPT or Hermes rows."""
    calls = [("f", {"a": 1, "deep": {"x": [1, 2]}}), ("g", {"b": "Zürich 🙂"})]
    for number, (name, arguments) in enumerate(calls):
        call = {"name": name, "arguments": arguments}
        text = json.dumps(call)
        shapes = {
            "openai": {
                "messages": [
                    {"role": "user", "content": "?"},
                    {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]},
                ],
                "tools": TOOLS,
            },
            "xlam": {"query": "?", "tools": json.dumps(TOOLS), "answers": json.dumps([call])},
            "sharegpt": {
                "conversations": [{"from": "human", "value": "?"}, {"from": "function_call", "value": text}],
                "tools": json.dumps(TOOLS),
            },
            "hermes": {
                "conversations": [
                    {"from": "human", "value": "?"},
                    {"from": "gpt", "value": f"<tool_call>\n{text}\n</tool_call>"},
                ],
                "tools": json.dumps(TOOLS),
            },
            "trl": {
                "prompt": [{"role": "user", "content": "?"}],
                "completion": [{"role": "assistant", "tool_calls": [{"type": "function", "function": call}]}],
                "tools": TOOLS,
            },
            "columns": {"query": "?", "tools": json.dumps(TOOLS), "thoughts": "", "tool_call": text},
        }
        yield {"id": f"row{number}", **shapes[how]}


@pytest.mark.parametrize("how", ["openai", "xlam", "sharegpt", "hermes", "trl", "columns"])
def test_every_shape_comes_through_every_kind_of_file(tmp_path, how):
    rows = list(call_rows(how))
    write(tmp_path / "rows.jsonl", rows)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    # Here a column of objects gives each of them the keys of all: `a` and `b` in both calls' arguments.
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    (tmp_path / "folder").mkdir()
    for number, one in enumerate(rows):
        write(tmp_path / "folder" / f"{number}.jsonl", [one])
    expected = [
        Conversation(
            id=f"row{number}",
            messages=(Message("user", "?"), Message("assistant", "", None, (call,))),
            tools=(Tool("f", "F.", {"type": "object"}), Tool("g", "", {"type": "object", "required": ["b"]})),
        )
        for number, call in enumerate(
            [ToolCall("f", {"a": 1, "deep": {"x": [1, 2]}}), ToolCall("g", {"b": "Zürich 🙂"})]
        )
    ]
    for name in ("rows.jsonl", "rows.json", "rows.parquet", "saved", "folder"):
        source = Source(str(tmp_path / name))
        read = [source.read(one, place) for place, one in source.rows()]
        assert [replace(conversation, raw_turns=()) for conversation in read] == expected, name


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "saved", "folder"])
def test_shares_of_a_source_are_disjoint_and_whole(tmp_path, name):
    rows = [row(number) for number in range(2500)]
    write(tmp_path / "rows.jsonl", rows)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "0.jsonl", rows[:7])
    parquet.write_table(pa.Table.from_pylist(rows[7:]), tmp_path / "folder" / "1.parquet")
    for limit in (None, 1203):
        source = Source(str(tmp_path / name), limit=limit)
        shares = [[one["id"] for _, one in source.rows(start, 3)] for start in range(3)]
        assert shares == [[one["id"] for one in rows[:limit][start::3]] for start in range(3)]
        assert [one["id"] for _, one in source.rows(1100)] == [one["id"] for one in rows[1100:limit]]
        assert list(source.rows(9999, 2)) == []


def test_a_broken_parquet_file_is_told_in_one_line(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(DataError, match=r"rows.parquet: cannot read Parquet after row 0"):
        list(Source(str(tmp_path / "rows.parquet")).rows())


def test_rows_that_cannot_be_used_are_reported_with_place_id_and_reason(tmp_path):
    broken_call = row(2, answer="<tool_call>\n{'name': 'f', 'arguments': }\n</tool_call>")
    file = write(tmp_path / "rows.jsonl", [row(0), "{not json", broken_call, {"id": "row3", "conversations": []}])
    report = prepared(tmp_path, train=[Source(str(file))]).report
    assert (report.rows, report.documents) == (4, 1)
    assert [(place.rsplit(":", 1)[1], id) for place, id, _ in report.skipped] == [
        ("2", "rows_2"),
        ("3", "row2"),
        ("4", "row3"),
    ]
    assert "neither JSON nor a Python literal" in report.skipped[1][2]


def test_long_conversations_are_dropped_or_cut_behind_a_turn(tmp_path):
    speakers = [(who, number) for number in range(4) for who in ("human", "gpt")]
    turns = [{"from": who, "value": f"{who} {number} " + "word " * 20} for who, number in speakers]
    file = write(tmp_path / "rows.jsonl", [row(0), {"id": "long", "conversations": turns}])
    settings = {"train": [Source(str(file))], "max_length": 150}
    dropped, cut = prepared(tmp_path, **settings), prepared(tmp_path, **settings, too_long="cut")
    assert dropped.documents["id"][:] == ["row0"]
    assert [case[1] for case in dropped.report.too_long] == ["long"]
    assert [case[1] for case in cut.report.cut] == ["long"]
    data = FunctionCallingDataModule(BASE, cache_dir=str(tmp_path / "cache"), **settings)
    text = data.template.tokenizer.decode(cut.documents["input_ids"][1])
    assert len(cut.documents["input_ids"][1]) <= 150
    assert text.endswith("<end_of_turn>\n")
    assert text.count("<start_of_turn>model") == text.count("<end_of_turn>") / 2 > 0


def test_prepared_data_is_reused_and_prepared_again_when_a_file_changes(tmp_path):
    file = write(tmp_path / "rows.jsonl", [row(0)])
    settings = {"train": [Source(str(file))]}
    assert ids(tmp_path, **settings) == ["row0"]
    (folder,) = [path for path in (tmp_path / "cache" / "data").iterdir() if path.is_dir()]
    changed = folder.stat().st_mtime_ns
    assert ids(tmp_path, **settings) == ["row0"]
    assert folder.stat().st_mtime_ns == changed
    write(file, [row(1)])
    assert ids(tmp_path, **settings) == ["row1"]


def test_every_source_has_a_weight_or_none(tmp_path):
    data = FunctionCallingDataModule(
        BASE, [Source(TRAIN, limit=4, weight=1.0), Source(TRAIN, limit=2)], cache_dir=str(tmp_path / "cache")
    )
    data.setup("fit")
    with pytest.raises(DataError, match="give every source a `weight`, or none"):
        data.train_dataloader()
    zero = FunctionCallingDataModule(BASE, [Source(TRAIN, limit=4, weight=0.0)], cache_dir=str(tmp_path / "cache"))
    zero.setup("fit")
    with pytest.raises(DataError, match="a `weight` must be positive"):
        zero.train_dataloader()
    long = write(tmp_path / "long.jsonl", [row(0, "word " * 900)])
    sources = [Source(TRAIN, limit=4, weight=1.0), Source(str(long), weight=1.0)]
    empty = FunctionCallingDataModule(BASE, sources, max_length=512, cache_dir=str(tmp_path / "cache"))
    empty.setup("fit")
    with pytest.raises(DataError, match=r"long.jsonl has a `weight` but no usable row"):
        empty.train_dataloader()


def test_prompts_carry_tools_gold_and_the_schema_of_the_answer(tmp_path):
    tool = {"type": "function", "function": {"name": "f", "description": "F.", "parameters": {"type": "object"}}}
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    speakers = ("human", "gpt", "human", "gpt", "human", "gpt")
    texts = ("Hi?", "Hello.", "One?", call, "And again?", call)
    turns = [{"from": who, "value": text} for who, text in zip(speakers, texts, strict=True)]
    gold = [{"f": {"a": [1, "one"], "b": [""]}}]
    schema = {"type": "object"}
    with_tools = {"id": "tools", "conversations": turns, "tools": [tool], "gold": gold}
    file = write(tmp_path / "rows.jsonl", [with_tools, row(1) | {"schema": schema}])
    data = FunctionCallingDataModule(BASE, test=[Source(str(file))], cache_dir=str(tmp_path / "cache"))
    data.setup("test")
    batches = list(data.predict_dataloader())
    order = [number for batch in batches for number in batch["order"]]
    columns = ("id", "turn", "tools", "gold", "response_schema")
    rows = [turn for batch in batches for turn in zip(*(batch[name] for name in columns), strict=True)]
    assert [prompt for _, prompt in sorted(zip(order, rows, strict=True))] == [
        ("tools", 0, json.dumps([tool]), "", ""),
        ("tools", 1, json.dumps([tool]), json.dumps(gold), ""),
        ("tools", 2, json.dumps([tool]), "", ""),
        ("row1", 0, "[]", "", json.dumps(schema)),
    ]


def test_a_row_that_cannot_be_rendered_has_no_prompts_and_is_reported_once(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [call]}]
    texts = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    sources = []
    for name, row in (("calls", {"messages": turns}), ("texts", {"conversations": texts})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
        sources.append(Source(str(tmp_path / f"{name}.jsonl")))
    data = FunctionCallingDataModule(
        BASE, validation=sources, render="verbatim", max_unreadable=1.0, cache_dir=str(tmp_path / "cache")
    )
    data.setup("validate")
    prepared = data.prepared["validation"]
    assert [place for place, *_ in prepared.report.skipped] == [f"{tmp_path}/calls.jsonl:1"]
    assert len(prepared.prompts) == 1


def test_every_rank_has_prompts_where_one_batch_would_hold_all(tmp_path):
    data = FunctionCallingDataModule(BASE, validation=[Source(TRAIN, limit=12)], cache_dir=str(tmp_path))
    data.setup("validate")
    count = len(data.prepared["validation"].prompts)
    assert len(list(data.val_dataloader()[1])) == 1
    asked = []
    for rank in range(2):
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank, state=SimpleNamespace(fn="validate"))
        data.trainer.strategy = SimpleNamespace(root_device=torch.device("cpu"))
        asked.append([order for batch in data.val_dataloader()[1] for order in batch["order"]])
    assert all(asked)
    assert sorted(asked[0] + asked[1]) == list(range(count))


def test_batches_of_prompts_are_joined_where_the_trainer_does_not_count_them(tmp_path):
    source = Source(TRAIN, limit=12)
    data = FunctionCallingDataModule(BASE, validation=[source], cache_dir=str(tmp_path), generation_batch_size=1)
    data.setup("validate")
    count = len(data.prepared["validation"].prompts)
    assert count > 3
    joined = list(data.val_dataloader()[1])
    assert [len(batch["order"]) for batch in joined] == [2] * (count // 2) + [1] * (count % 2)
    assert all(batch["limits"] == (32768, 1) for batch in joined)
    for name, limit in {"limit_val_batches": 1, "limit_test_batches": 0.5, "num_sanity_val_steps": 2}.items():
        settings: dict[str, Any] = {"world_size": 1, "global_rank": 0, name: limit}
        data.trainer = SimpleNamespace(state=SimpleNamespace(fn="validate"), **settings)
        data.trainer.strategy = SimpleNamespace(root_device=torch.device("cpu"))
        counted = list(data.val_dataloader()[1])
        assert [batch["order"] for batch in counted] == [[number] for batch in joined for number in batch["order"]]
