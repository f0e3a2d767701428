"""Mistakes: the wrong calls that come most often, written as rows that the project reads back."""

from fc_lightning.conversation.types import Conversation, Message, Tool, ToolCall
from fc_lightning.data.formats import read_row
from fc_lightning.evaluation.mistakes import most_frequent_mistake, preference_rows
from fc_lightning.evaluation.turns import evaluate_turn

RIGHT = ToolCall("clock", {"city": "Rome"})
HISTORY = (Message("user", "Hello."), Message("assistant", "Hi."), Message("user", "Time in Rome?"))
TALK = Conversation("a", (*HISTORY, Message("assistant", "", "Rome.", (RIGHT,))), (Tool("clock", "Time."),), "one")


def said(text: str, sample: int = 0, finished: bool = True, expected=(RIGHT,), turn: int = 1, id: str = "a", **more):
    return evaluate_turn(text, expected, finished=finished, sample=sample, turn=turn, id=id, **more)


def call(city: str, again: int = 1) -> str:
    return f'<tool_call>{{"name": "clock", "arguments": {{"city": "{city}"}}}}</tool_call>' * again


def test_the_most_frequent_wrong_turn_is_chosen():
    texts = [call("Rome"), call("Oslo"), call("Bern"), call("Bern"), "No.", call("Rome")]
    mistake = most_frequent_mistake([said(text, number) for number, text in enumerate(texts)])
    assert mistake is not None
    assert (mistake.text, mistake.sample) == (call("Bern"), 2)
    assert most_frequent_mistake([said(call("Rome"))] * 3) is None
    assert most_frequent_mistake([said(call("Rome", 2)), said(call("Rome"))]).text == call("Rome", 2)


def test_what_a_preference_cannot_teach_is_no_mistake():
    unreadable = said("<tool_call>{oops</tool_call>")
    unfinished = said(call("Bern"), finished=False)
    accepted = said(call("ROME"), gold=[{"clock": {"city": ["Rome", "ROME"]}}])
    assert most_frequent_mistake([unreadable, unfinished, accepted]) is None
    needless = said(call("Rome"), expected=())
    assert most_frequent_mistake([unreadable, needless]) == needless


def test_rows_are_read_back_as_the_true_turn_and_the_mistake():
    turns = [said("Hi.", expected=(), turn=0), said(call("Bern")), said(call("Bern"), 1)]
    (row,) = preference_rows(turns, [TALK])
    read = read_row(row)
    assert (read.id, read.category, read.tools) == ("a/1", "one", TALK.tools)
    assert read.messages == TALK.messages
    assert read.rejected == Message("assistant", "", None, (ToolCall("clock", {"city": "Bern"}),))
    assert not read.defects
