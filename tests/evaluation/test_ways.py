"""Response types, judged by hand, and the table in the report."""

import pytest

from fc_lightning.conversation.types import ToolCall
from fc_lightning.evaluation.metrics import TurnRatio, evaluate_turn
from fc_lightning.evaluation.report import html_report, markdown_report
from fc_lightning.evaluation.report_tables import EvaluatedRun
from fc_lightning.evaluation.ways import confusion, way_of

CALL = '<tool_call>{"name": "clock", "arguments": {"city": "Rome"}}</tool_call>'


@pytest.mark.parametrize(
    ("text", "way"),
    [
        (CALL, "tool_call"),
        ("<think>Shall I call?</think>" + CALL, "tool_call"),
        ('<tool_call>{"name": </tool_call>', "tool_call"),
        ("It is noon in Rome.", "direct"),
        ("<think>Should I ask? I cannot know.</think>It is noon.", "direct"),
        ("Cannes is in France.", "direct"),
        ("Which city do you mean?", "request_for_info"),
        ("To book it, please provide the date of your flight.", "request_for_info"),
        ("Which date? I cannot book without it.", "request_for_info"),
        ("I'm sorry, but I can't book flights.", "cannot_answer"),
        ("I can’t book flights. Is there anything else?", "cannot_answer"),
        ("I am unable to help with that.", "cannot_answer"),
        ("I don't have access to your calendar.", "cannot_answer"),
        ("There is no function for this.", "cannot_answer"),
        ("", "direct"),
    ],
)
def test_how_a_turn_meets_the_request(text, way):
    assert way_of(evaluate_turn(text, [])) == way


def test_a_turn_that_does_not_end_meets_no_request():
    assert way_of(evaluate_turn("Which city do you", [], finished=False)) == "unfinished"


def test_labels_against_what_the_model_did():
    call = [ToolCall("clock", {"city": "Rome"})]
    turns = [
        evaluate_turn(CALL, call, category="tool_call"),
        evaluate_turn("Which city?", call, category="tool_call"),
        evaluate_turn(CALL, [], category="request_for_info"),
        evaluate_turn("Which city?", [], category="request_for_info"),
        evaluate_turn("Which city?", [], category="request_for_info"),
        evaluate_turn("It is noon.", [], category="cannot_answer"),
        evaluate_turn("It is noon.", [], category="single"),
    ]
    assert confusion(turns) == {
        "tool_call": {"tool_call": 1, "request_for_info": 1},
        "request_for_info": {"tool_call": 1, "request_for_info": 2},
        "cannot_answer": {"direct": 1},
    }
    assert TurnRatio("way_match")(turns).item() == pytest.approx(3 / 6)
    report = markdown_report([EvaluatedRun("run", turns)], "Evaluation")
    assert "| run | request\\_for\\_info | 0 | 1 | 2 | 0 | 0 |" in report
    assert "Response types" in html_report([EvaluatedRun("run", turns)], "Evaluation")


def test_rows_without_a_label_have_no_table_and_no_value():
    turns = [evaluate_turn("Hi.", [], category="single")]
    assert "Response types" not in markdown_report([EvaluatedRun("run", turns)], "Evaluation")
    assert TurnRatio("way_match")(turns).isnan()
