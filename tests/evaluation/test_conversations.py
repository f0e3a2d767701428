"""Free running with a scripted model: what it is asked, and what comes of it, from plain strings."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer
from fc_lightning.evaluation.conversations import (
    conversation_metrics,
    group_conversations,
    measure_conversations,
    play_conversations,
    rows_of,
)
from fc_lightning.evaluation.evaluator import TurnGenerator

TOKENIZER = load_tokenizer("tests/models/tiny_gemma2", None, tuple(SpecialToken))[0]


def recorded(name, turn):
    arguments = {"a": turn, "b": name}
    return f"<tool_call>\n{json.dumps({'name': 'f', 'arguments': arguments})}\n</tool_call>", arguments


def said(name, turn, how):
    """The text of the scripted model: as recorded, the same call in other words, another call, or none."""
    text, arguments = recorded(name, turn)
    swapped = dict(reversed(arguments.items()))
    return {
        "recorded": text,
        "reworded": f"<think>\nHm.\n</think>\n<tool_call>{json.dumps({'arguments': swapped, 'name': 'f'})}</tool_call>",
        "wrong": text.replace('"a"', '"c"'),
        "silent": "Hello.",
    }[how]


def between(name, turn):
    return f"<end_of_turn>\n<start_of_turn>user\nresponse {turn} to {name}<end_of_turn>\n<start_of_turn>model\n"


def prompts(name, texts):
    """The prompt of each turn when the model's turns have these texts."""
    out = [f"<start_of_turn>user\nquestion of {name}<end_of_turn>\n<start_of_turn>model\n"]
    for turn, text in enumerate(texts):
        out.append(out[-1] + text + between(name, turn))
    return out[: len(texts)]


class Scripted(TurnGenerator):
    """Finds conversation and turn by the prompt's end, and notes what it was asked."""

    def __init__(self, script):
        super().__init__(TOKENIZER, {"max_new_tokens": 8})
        self.script = script
        self.asked = []

    def texts(self, model, prompts, tools, seed, synced_gpus=False, limits=None):
        out = []
        for prompt in prompts:
            text = TOKENIZER.decode(prompt)
            self.asked.append(text)
            name = next(name for name in self.script if f"question of {name}<" in text)
            turn = text.count("response ")
            out.append((said(name, turn, self.script[name][turn]), True))
        return out


def batch_of(script):
    rows = []
    for name, hows in script.items():
        for turn, prompt in enumerate(prompts(name, [recorded(name, turn)[0] for turn in range(len(hows))])):
            expected = json.dumps([{"name": "f", "arguments": recorded(name, turn)[1]}])
            rows.append({"id": name, "turn": turn, "expected": expected, "order": len(rows)})
            rows[-1]["input_ids"] = TOKENIZER.encode(prompt, add_special_tokens=False)
            rows[-1] |= {
                "tools": "[]",
                "gold": "",
                "response_schema": "",
                "answer": "",
                "category": "",
                "perturbation": "",
            }
    return {key: [row[key] for row in rows] for key in rows[0]}


scripts = st.lists(
    st.lists(st.sampled_from(["recorded", "recorded", "reworded", "wrong", "silent"]), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
).map(lambda hows: {f"n{number}": how for number, how in enumerate(hows)})


@settings(deadline=None, max_examples=40)
@given(scripts, st.integers(1, 5))
def test_conversations_are_played_to_the_first_mistake(script, max_prompts):
    generator, batch = Scripted(script), batch_of(script)
    teacher_forced = dict(generator.turns(None, batch))
    assert generator.asked == [TOKENIZER.decode(ids) for ids in batch["input_ids"]]
    generator.asked.clear()
    limits = (10_000, max_prompts)
    played = play_conversations(generator, None, group_conversations(rows_of(batch)), teacher_forced, limits)

    expected, asked = {}, []
    for name, hows in script.items():
        expected[name] = next((turn for turn, how in enumerate(hows, 1) if how in ("wrong", "silent")), None)
        texts = [said(name, turn, how) for turn, how in enumerate(hows)]
        free, forced = (
            prompts(name, texts),
            [TOKENIZER.decode(ids) for ids, id_ in zip(batch["input_ids"], batch["id"], strict=True) if id_ == name],
        )
        num_played = expected[name] or len(hows)
        asked += [prompt for prompt, other in list(zip(free, forced, strict=True))[:num_played] if prompt != other]
    assert {one.id: one.first_mistake for one in played} == expected
    assert [one.num_turns for one in played] == [len(hows) for hows in script.values()]
    assert sorted(generator.asked) == sorted(asked)
    # Conversations that are right turn by turn, and said as recorded, need no second generation.
    metrics = conversation_metrics(played)
    num_right = sum(mistake is None for mistake in expected.values())
    assert metrics["conversation_match"] == pytest.approx(num_right / len(script))


SCRIPT = {"n0": ["recorded", "reworded", "recorded"], "n1": ["reworded", "wrong"], "n2": ["silent"]}
MEASURED = {"conversation_match": 1 / 3, "first_mistake": 1.5}


def measure_on(rank, world_size, folder):
    """Measure on one of several ranks; each has evaluated every second prompt, so conversations are torn apart."""
    if world_size > 1:
        store = f"file://{folder}/store"
        torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    generator = Scripted(SCRIPT)
    rows = rows_of(batch_of(SCRIPT))[rank::world_size]
    turns = generator.turns(None, {key: [row[key] for row in rows] for key in rows[0]})
    generator.asked.clear()
    measured = measure_conversations(generator, None, rows, turns)
    (Path(folder) / f"{rank}_of_{world_size}.json").write_text(json.dumps([measured, generator.asked]))
    if world_size > 1:
        torch.distributed.destroy_process_group()  # at exit, threads of gloo sometimes abort the process


def test_generation_keeps_to_the_limits_of_the_data(monkeypatch):
    script = {f"n{number}": ["reworded", "recorded"] for number in range(3)}
    generator, rows = Scripted(script), rows_of(batch_of(script))
    turns, limits = generator.turns(None, batch_of(script)), []
    original = generator.texts
    monkeypatch.setattr(generator, "texts", lambda *args: limits.append(args[-1]) or original(*args))
    data = SimpleNamespace(generation_batch_tokens=1000, generation_batch_size=2)
    assert measure_conversations(generator, None, rows, turns, data) == {"conversation_match": 1.0}
    assert limits == [(1000, 2)]


@pytest.mark.slow
def test_two_ranks_measure_what_one_does(tmp_path):
    measure_on(0, 1, tmp_path)
    torch.multiprocessing.spawn(measure_on, args=(2, str(tmp_path)), nprocs=2)
    alone, *ranks = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("0_of_1", "0_of_2", "1_of_2"))
    assert alone[0] == pytest.approx(MEASURED)
    assert [measured for measured, _ in ranks] == [alone[0]] * 2
    assert all(asked for _, asked in ranks)  # each plays a part of the conversations
    assert sorted(ranks[0][1] + ranks[1][1]) == sorted(alone[1])


def test_conversations_without_their_first_turns_are_left_out():
    rows = rows_of(batch_of({"n0": ["recorded"] * 3, "n1": ["recorded"] * 2}))
    assert [[row["turn"] for row in rows] for rows in group_conversations(reversed(rows))] == [[0, 1, 2], [0, 1]]
    assert [[row["turn"] for row in rows] for rows in group_conversations([rows[0], rows[2], rows[4]])] == [[0]]
    assert conversation_metrics([]) == {}
