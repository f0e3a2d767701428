"""Evaluation within whole runs: training is not disturbed, samples, prompts of one's own, a chat, constraints."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer
from fc_lightning.conversation.json_schema import fits_schema
from fc_lightning.conversation.parsing import parse_turn
from fc_lightning.conversation.types import Tool
from fc_lightning.evaluation.constrained import CallGrammars
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
    recipe = Path("configs/debug/tiny.yaml").read_text().replace("lora_alpha: 8", "lora_alpha: 8, lora_dropout: 0.3")
    (tmp_path / "dropout.yaml").write_text(recipe)
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
        ('{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}', "a model turn"),
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
    assert "nowhere.json: file not found" in capsys.readouterr().err.splitlines()[-1]


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


def test_constrained_turns_are_grammatical_and_their_calls_valid():
    """Any tokens that are allowed, drawn at random: every turn that ends can be read, and its calls are valid."""
    pytest.importorskip("xgrammar")
    tokenizer, _ = load_tokenizer("tests/models/tiny_gemma2", None, tuple(SpecialToken))
    generator = torch.Generator().manual_seed(0)
    opening = tokenizer.convert_tokens_to_ids("<tool_call>")
    grammars = CallGrammars(tokenizer, len(tokenizer) + 3, [1])  # a model's matrix may have rows to spare
    weather = [Tool("weather", "", SCHEMA), Tool("clock")]
    constraint = grammars.constrain([weather] * 12 + [[]] * 2, 10_000)
    ids = torch.full((14, 5), 7)
    constraint.start_leg(range(14))
    for step in range(150):
        scores = torch.randn(14, len(tokenizer) + 3, generator=generator)
        scores[:, opening] += 20.0 if step < 3 else 0.0  # so that there are calls
        scores[:, 1] += 3.0
        allowed = constraint(ids, scores)
        ids = torch.cat([ids, allowed.argmax(-1, keepdim=True)], 1)
    texts = [tokenizer.decode(row[5 : row.index(1, 5)]) for row in ids.tolist() if 1 in row[5:]]
    turns = [parse_turn(text) for text in texts]
    calls = [call for turn in turns for call in turn.tool_calls]
    assert len(turns) > 10
    assert all(turn.grammatical and not turn.errors for turn in turns)
    assert {call.name for call in calls} == {"weather", "clock"}
    assert all(fits_schema(call.arguments, SCHEMA) for call in calls if call.name == "weather")
    assert not turns[-1].tool_calls  # no tools, no calls


ENDLESS = {
    "type": "object",
    "properties": {
        "numbers": {"type": "array", "items": {"type": "integer"}},
        "nested": {"$ref": "#/$defs/node"},
        "note": {"type": "string"},
        "kind": {"enum": ["first", "second"]},
    },
    "required": ["numbers", "note", "kind"],
    "$defs": {"node": {"type": "object", "properties": {"children": {"items": {"$ref": "#/$defs/node"}}}}},
}


@pytest.mark.parametrize("begin", ["", "<think>\n", '<tool_call>\n{"name": "f", "arguments": {"numbers": ['])
def test_a_constrained_turn_comes_to_its_end_before_its_tokens_do(begin):
    """Tokens at random, of which none would end a string, a list, a number or a thought by itself."""
    pytest.importorskip("xgrammar")
    tokenizer, _ = load_tokenizer("tests/models/tiny_gemma2", None, tuple(SpecialToken))
    limit, rows = 300, 8
    constraint = CallGrammars(tokenizer, len(tokenizer), [1]).constrain([[Tool("f", "", ENDLESS)]] * rows, limit)
    begun = tokenizer.encode(begin, add_special_tokens=False)
    generator = torch.Generator().manual_seed(0)
    closing = [number for number in range(len(tokenizer)) if set(tokenizer.decode([number])) & set('"]}\n>')]
    ids = torch.full((rows, 1), 7)
    for step in range(limit):
        scores = torch.randn(rows, len(tokenizer), generator=generator)
        scores[:, [1, *closing]] -= 20.0
        if step < len(begun):
            scores[:, begun[step]] += 100.0
        ids = torch.cat([ids, constraint(ids, scores).argmax(-1, keepdim=True)], 1)
    for row in ids.tolist():
        assert 1 in row
        text = tokenizer.decode(row[1 : row.index(1)])
        turn = parse_turn(text)
        assert text.startswith(begin)
        assert turn.grammatical
        assert not turn.errors
        assert all(fits_schema(call.arguments, ENDLESS) for call in turn.tool_calls)
        assert bool(turn.tool_calls) or "tool_call" not in begin


def test_constrained_generation_goes_through_legs(run):
    pytest.importorskip("xgrammar")
    folder = run("validate", "--model.constrained=true", "--model.generation={do_sample: true, max_new_tokens: 40}")
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").open()]
    assert all(line["parsed"] and line["grammar"] and line["finished"] for line in lines)


def test_a_schema_that_is_no_use_is_told():
    pytest.importorskip("xgrammar")
    tokenizer, _ = load_tokenizer("tests/models/tiny_gemma2", None, tuple(SpecialToken))
    grammars = CallGrammars(tokenizer, len(tokenizer), [1])
    with pytest.warns(UserWarning, match="the arguments of f are not constrained"):
        grammars.constrain([[Tool("f", "", {"properties": {"a": {"type": "varchar"}}})]], 100)
