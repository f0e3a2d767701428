"""Evaluation within whole runs: training is not disturbed, samples, prompts of one's own, a chat, constraints."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fc_lightning.evaluation.evaluator import TurnGenerator

QUICK = ("--data.train=[{path: data/quickstart/train.jsonl, limit: 4}]", "--data.packing=false")
SAMPLED = "--model.generation={do_sample: true, max_new_tokens: 6}"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome", "Bern"]}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Weather.", "parameters": SCHEMA}}]


def train_losses(folder):
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    place = lines[0].index("train/loss")
    return [line[place] for line in lines[1:] if line[place]]


def test_training_is_the_same_to_the_bit_with_and_without_validation(run, tmp_path):
    peft = Path("configs/debug/tiny.yaml").read_text().replace("lora_alpha: 8", "lora_alpha: 8, lora_dropout: 0.3")
    (tmp_path / "dropout.yaml").write_text(peft)
    common = ("fit", *QUICK, SAMPLED, "--trainer.max_epochs=2")
    without = run(*common, "--trainer.limit_val_batches=0", config=tmp_path / "dropout.yaml")
    often = run(*common, "--trainer.val_check_interval=1", config=tmp_path / "dropout.yaml")
    assert "val/exact_match" in (often / "metrics.csv").read_text()
    assert "val/exact_match" not in (without / "metrics.csv").read_text()
    assert len(train_losses(without)) == 4
    assert train_losses(without) == train_losses(often)
    first, second = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (without, often))
    assert len(first) > 10
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_limit_on_the_prompts_of_validation_within_training(run):
    def turns(*arguments):
        return [json.loads(line)["turn"] for line in (run(*arguments) / "predictions.jsonl").open()]

    limit = "--data.validation_prompts=3"
    everything = turns("validate", limit)
    assert len(everything) == 7
    assert turns("fit", limit, *QUICK) == [everything[place] for place in (0, 2, 4)]
    assert len(turns("test", limit)) == 7


def test_several_generations_a_prompt(run):
    folder = run("validate", "--model.generation={do_sample: true, num_return_sequences: 3, max_new_tokens: 4}")
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").open()]
    assert [line["sample"] for line in lines] == [0, 1, 2] * 7
    assert len({line["text"] for line in lines[:3]}) > 1
    assert "val/pass_at_3" in (folder / "metrics.csv").read_text()


@pytest.fixture
def tools_file(tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    return tmp_path / "tools.json"


def test_predict_from_prompts_and_from_a_question(run, tmp_path, tools_file, capsys):
    asked = {"messages": [{"role": "user", "content": "Weather in Rome?"}]}
    rows = [{**asked, "tools": TOOLS, "id": "mine"}, asked]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = run(
        "predict", f"--prompts={tmp_path / 'prompts.jsonl'}", f"--tools={tools_file}", "--data.validation=null"
    )
    first, second = (json.loads(line) for line in (folder / "predictions.jsonl").open())
    assert (first["id"], second["id"]) == ("mine", "prompts.jsonl:2")
    assert first["prompt"] == second["prompt"]
    assert '"weather"' in first["prompt"]
    assert first["expected"] is first["exact_match"] is None
    assert isinstance(first["predicted"], list)
    folder = run("predict", "--question=Weather in Rome?", f"--tools={tools_file}")
    (only,) = (json.loads(line) for line in (folder / "predictions.jsonl").open())
    assert (only["prompt"], only["text"]) == (first["prompt"], first["text"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "rows.jsonl:1: not JSON"),
        (
            '{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}',
            "the last message is a model turn",
        ),
    ],
)
def test_prompts_that_cannot_be_used(run, tmp_path, capsys, row, message):
    (tmp_path / "rows.jsonl").write_text(row + "\n")
    with pytest.raises(SystemExit):
        run("predict", f"--prompts={tmp_path / 'rows.jsonl'}")
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_tools_file_that_is_missing(run, capsys):
    with pytest.raises(SystemExit):
        run("predict", "--question=Hi?", "--tools=nowhere.json")
    assert "nowhere.json: file not found (`--tools`)" in capsys.readouterr().err.splitlines()[-1]


def test_a_chat_goes_on_with_what_the_tools_return(run, tools_file, monkeypatch, capsys):
    prompts, said = [], iter(["Weather in Rome?", "sunny", "Thanks!", ""])
    answers = iter(
        ['<think>Ask.</think><tool_call>{"name": "weather", "arguments": {"days": 1}}</tool_call>', "Sun.", "Bye."]
    )

    def texts(self, model, ids, tools, seed):
        prompts.append(self.tokenizer.decode(ids[0]))
        return [(next(answers), True)]

    asked = []
    monkeypatch.setattr(TurnGenerator, "texts", texts)
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or next(said))
    run("chat", f"--tools={tools_file}")
    assert asked == ["you> ", "weather returns> ", "you> ", "you> "]
    assert prompts[1].startswith(prompts[0])
    assert "<tool_response>\nsunny\n</tool_response>" in prompts[1]
    assert prompts[2].startswith(prompts[1] + "Sun.")
    out = capsys.readouterr().out
    assert all(text in out for text in ("Ask.", 'weather({"days": 1})', "Sun.", "Bye."))


def test_samples_are_constrained_too(run):
    pytest.importorskip("xgrammar")
    folder = run("validate", "--model.constrained=true", "--model.generation={do_sample: true, max_new_tokens: 40}")
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").open()]
    assert all(line["parsed"] and line["grammar"] and line["finished"] for line in lines)


@pytest.mark.parametrize("free_running", [True, False])
def test_whole_conversations_are_measured_beside_turns(run, free_running):
    """The tiny model is right nowhere: each conversation ends with its first turn."""
    folder = run("validate", f"--model.free_running={free_running}")
    names = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert ("val/conversation_match" in names) == ("val/first_mistake" in names) == free_running
    assert "val/exact_match" in names
