"""Progress while the model generates: a line with turns and exact match in a file, the same beside a bar."""

import re
from types import SimpleNamespace

import pytest

from fc_lightning.callbacks import ProgressBar
from fc_lightning.callbacks.summary import _example
from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer
from fc_lightning.conversation.parsing import parse_turn
from fc_lightning.conversation.types import Conversation, Message, Tool
from fc_lightning.evaluation.metrics import evaluate_turn
from fc_lightning.evaluation.report_turns import question_of

CALL = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'


def turn(text, id="a", prompt="", expected=CALL):
    return evaluate_turn(text, list(parse_turn(expected).tool_calls), finished=True, id=id, prompt=prompt)


def prompts(count):
    return {"order": list(range(count))}


def evaluation(bar, batches, turns):
    """An evaluation in which one row of a batch ends in the second step, and the others with the batch."""
    loader = SimpleNamespace(sampler=[list(range(len(batch["order"]))) for batch in batches])
    module = SimpleNamespace(evaluated_turns=[], turn_generator=SimpleNamespace(samples=1))
    for number, batch in enumerate(batches):
        bar._begin_batch("validation", module, loader, [len(batches)], None, batch, number)
        for num_ended in (0, 1):
            module.turn_generator.on_step(num_ended)
        module.evaluated_turns += [(0, one) for one in turns[number]]
        bar._end_batch(module, None, batch, number)


@pytest.fixture
def bar(monkeypatch):
    now = [0.0]

    def clock():
        now[0] += 20.0
        return now[0]

    monkeypatch.setattr("fc_lightning.utils.progress.time.monotonic", clock)
    bar = ProgressBar(seconds=30)
    bar.to_file = True
    return bar


def test_lines_of_a_file_count_turns(bar, capsys):
    right, wrong = turn(CALL), turn("Hello.")
    evaluation(bar, [prompts(2), prompts(2), prompts(4)], [[right, wrong], [wrong, wrong], [right] * 4])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("validation")]
    assert re.fullmatch(r"validation: 1/8 turns, \d+:\d\d left", lines[0])  # before the first batch has ended
    assert re.fullmatch(r"validation: \d/8 turns, exact match 0.\d\d, \d+:\d\d left", lines[1])
    assert bar._evaluation.done == 8


def test_batches_of_an_endless_loader_have_no_total(bar, capsys):
    for number in range(3):
        bar._begin_batch("validation", None, None, [float("inf")], None, {"input_ids": []}, number)
        bar._end_batch(None, None, {"input_ids": []}, number)
    assert capsys.readouterr().out.splitlines()[0] == "validation: 2 batches"


def test_the_question_of_a_prompt_is_its_last_user_turn():
    tokenizer, _ = load_tokenizer("tests/models/tiny_gemma2", None, tuple(SpecialToken))
    template = ChatTemplate(tokenizer)
    messages = (Message("user", "First?"), Message("assistant", "Yes."), Message("user", "What time is it?"))
    for end, question in ((1, "First?"), (3, "What time is it?")):
        conversation = Conversation("", messages[:end], (Tool("clock", "The time."),))
        rendered = template.render(template.messages(conversation), conversation, generation_prompt=True)
        assert question_of(rendered.text) == question
    assert question_of("no turns here") == "no turns here"


def test_the_example_is_a_turn_that_training_has_corrected():
    before = [turn("Hello.", "a"), turn("Hi.", "b"), turn(CALL, "c")]
    after = [turn("Hello.", "a"), turn(CALL, "b", "What time?\x1b[31m"), turn(CALL, "c")]
    lines = _example(before, after)
    assert lines[0] == "question: What time?[31m"
    assert lines[1] == "  before: Hi."
    assert lines[2] == '  after:  <tool_call> {"name": "clock", "arguments": {}} </tool_call>'
    assert len(lines) == 3
    assert _example([], [turn("Hello.", "a")])[-1] == "  expected: clock({})"
