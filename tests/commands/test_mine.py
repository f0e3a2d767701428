"""Mining: the most frequent mistake of a prompt becomes the rejected turn of a pair that trains."""

import json
from pathlib import Path

import pytest
from tests.helpers.printed_lines import surplus_lines

from fc_lightning.cli.lightning_cli import main
from fc_lightning.commands.mine import most_frequent_mistake
from fc_lightning.conversation.types import Message, ToolCall
from fc_lightning.data import FunctionCallingDataModule, Source
from fc_lightning.data.formats import read_row
from fc_lightning.evaluation.evaluator import TurnGenerator
from fc_lightning.evaluation.metrics import evaluate_turn

ROME = '<tool_call>{"name": "clock", "arguments": {"city": "Rome"}}</tool_call>'
OSLO, BERN = ROME.replace("Rome", "Oslo"), ROME.replace("Rome", "Bern")
TOOL = {"type": "function", "function": {"name": "clock", "description": "", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "clock", "arguments": {"city": "Rome"}}}
ROWS = [
    {
        "id": "two turns",
        "messages": [
            {"role": "user", "content": "Time in Rome?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "12:00"},
            {"role": "assistant", "content": "Noon."},
        ],
        "tools": [TOOL],
    },
    {
        "id": "no mistake",
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
        "tools": [TOOL],
    },
]
# What the model says to each prompt, three times: in the order of the model turns.
SAID = [[(BERN, True), (OSLO, True), (OSLO, True)], [("Noon.", True), (ROME, True), (ROME[:-5], False)]]
SAID += [[("Hello.", True), ("Good day.", True), ("Hell", False)]]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([ROME, BERN, OSLO, OSLO], OSLO),
        ([ROME, ROME, ROME], None),
        ([ROME, BERN], BERN),
        (["<tool_call>{", "<tool_call>{", BERN], BERN),  # what cannot be read is no turn to learn from
        (["<tool_call>{"], None),
        (["Noon.", "Noon.", BERN], "Noon."),  # no call at all is a mistake too
    ],
)
def test_the_mistake_that_most_samples_make(texts, expected):
    turns = [evaluate_turn(text, [ToolCall("clock", {"city": "Rome"})]) for text in texts]
    mistake = most_frequent_mistake(turns)
    assert (mistake and mistake.text) == expected


def test_a_turn_that_the_row_accepts_or_that_does_not_end_is_no_mistake():
    gold = [{"clock": {"city": ["Rome", "Roma"]}}]
    roma = evaluate_turn(ROME.replace("Rome", "Roma"), [ToolCall("clock", {"city": "Rome"})], gold=gold)
    cut = evaluate_turn(OSLO, [ToolCall("clock", {"city": "Rome"})], finished=False)
    assert most_frequent_mistake([roma, cut]) is None


def test_pairs_are_written_and_train(tmp_path, monkeypatch, capsys):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    prompts = []

    def say(self, model, prompts_of_batch, tools, seed, synced_gpus=False, limits=None):
        assert self.samples == 3
        assert self.settings["do_sample"]
        assert self.settings["temperature"] == 0.5
        said = []
        for ids in prompts_of_batch:
            text = self.tokenizer.decode(ids)
            prompts.append(text)
            said += SAID[2 if "Hi" in text else 1 if "12:00" in text else 0]
        return said

    monkeypatch.setattr(TurnGenerator, "texts", say)
    settings = ["--config=configs/debug/tiny.yaml", f"--data.train={data}", f"--trainer.logger.save_dir={tmp_path}"]
    main(["mine", *settings, "--samples=3", "--temperature=0.5"])
    printed = capsys.readouterr().out.splitlines()
    assert len(prompts) == 3
    assert "3 turns, 2 with a mistake: 1 wrong value; 1 unnecessary call" in printed
    assert surplus_lines("mine", printed) == []
    file = tmp_path / "tiny/version_0/pairs.jsonl"
    first, second = [read_row(json.loads(line), None, "0") for line in file.read_text().splitlines()]
    # The first turn: the call of Oslo, which two of three samples make, is rejected.
    assert first.format == second.format == "preference"
    assert first.id == "two turns/0"
    assert [message.role for message in first.messages] == ["user", "assistant"]
    assert first.messages[-1].tool_calls == (ToolCall("clock", {"city": "Rome"}),)
    assert first.rejected == Message("assistant", tool_calls=(ToolCall("clock", {"city": "Oslo"}),))
    # The second: the known call is context, the call after it is rejected.
    assert [message.supervised for message in second.messages] == [True, False, True, True]
    assert second.messages[-1] == Message("assistant", "Noon.")
    assert second.rejected == Message("assistant", tool_calls=(ToolCall("clock", {"city": "Rome"}),))
    assert not [detail for kind, detail in first.notices + second.notices if kind != "chosen_side"]
    module = FunctionCallingDataModule(
        "tests/models/tiny_gemma2", [Source(str(file))], pairs=True, cache_dir=str(tmp_path / "cache")
    )
    module.setup("fit")
    documents = module.prepared["train"].documents
    assert len(documents) == 2
    assert all(ids for ids in documents["rejected_ids"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.train=[]"], "data.train"),
        (["--data.render=verbatim"], "data.render"),
        (["--trainer.limit_predict_batches=1", "--data.generation_batch_size=2"], "limit_predict_batches"),
    ],
)
def test_what_cannot_be_mined_ends_in_one_line(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["mine", "--config=configs/debug/tiny.yaml", f"--trainer.logger.save_dir={tmp_path}", *arguments])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not list(Path(tmp_path).rglob("pairs.jsonl"))
