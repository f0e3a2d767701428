"""The report: its metadata, every turn next to the reference calls, and curves of logged values."""

import json

import pytest
from tests.helpers.html_structure import Structure

from fc_lightning.conversation.types import ToolCall
from fc_lightning.evaluation.metrics import RULES, evaluate_turn
from fc_lightning.evaluation.report import ReportError, html_report, markdown_report, read_runs
from fc_lightning.evaluation.report_about import about_environment
from fc_lightning.evaluation.report_tables import EvaluatedRun, report_sections
from fc_lightning.evaluation.report_turns import compared_turns

ROME = [ToolCall("clock", {"city": "Rome", "zone": 1})]
CALL = '<tool_call>{"name": "clock", "arguments": {"city": "%s", "zone": 1}}</tool_call>'
PROMPT = "<start_of_turn>user\n<tools></tools>\nTime in <b>Rome</b>?<end_of_turn>\n<start_of_turn>model\n"


def turns(*texts):
    return [
        evaluate_turn(text, ROME, id=f"row{number}", category="single", prompt=PROMPT)
        for number, text in enumerate(texts)
    ]


@pytest.fixture
def columns():
    before = turns("Hello.", CALL % "Rome", CALL % "Oslo")
    after = turns(CALL % "Rome", CALL % "Oslo", CALL % "Bern")
    curves = {
        "train/loss": [(1, 2.0), (2, 1.0)],
        "val/loss": [(2, 1.5)],
        "val/exact_match": [(2, 0.5)],
        "lr-AdamW": [(1, 1e-4), (2, 0.0)],
    }
    about = {"model": "tiny <1>", "date": "2026-11-26"}
    return [EvaluatedRun("before training", before), EvaluatedRun("after training", after, curves, about=about)]


def test_turns_are_compared_with_what_was_expected_and_with_before(columns):
    compared = {one.turn.id: one for one in compared_turns(columns, 9)}
    changes = {id: one.tags["change since before training"] for id, one in compared.items()}
    assert changes == {"row0": "corrected", "row1": "now wrong", "row2": "still wrong"}
    assert list(compared) == ["row1", "row2", "row0"]  # wrong ones first
    one = compared["row1"]
    assert [(side.name, side.verdict) for side in one.generated] == [
        ("before training", "correct"),
        ("after training", "wrong value"),
    ]
    assert [text for text, differs in one.expected.pieces if differs] == ['city="Rome"']
    assert [text for text, differs in one.generated[1].pieces if differs] == ['city="Oslo"']
    assert one.question == "Time in <b>Rome</b>?"
    assert [one.turn.id for one in compared_turns(columns, 1)] == ["row1", "row0"]
    assert compared_turns([columns[0]], 9)[0].tags.keys() == {"kind", "category"}


def test_a_turn_without_calls_shows_its_text():
    cut = evaluate_turn("<tool_call>{", ROME, finished=False)
    answer = evaluate_turn("Noon.", [], id="b")
    failed, correct = compared_turns([EvaluatedRun("test", [answer, cut])], 9)
    assert failed.generated[0].pieces == [("<tool_call>{", True)]
    assert "".join(text for text, _ in correct.generated[0].pieces) == "no call: Noon."
    long = compared_turns([EvaluatedRun("test", [evaluate_turn("<\n" * 50, ROME)])], 9)[0]
    assert long.generated[0].pieces == [("no call", True), (": " + "<\n" * 7 + "<…", False)]
    unlabelled = evaluate_turn("Noon.", [], labelled=False)
    assert compared_turns([EvaluatedRun("predict", [unlabelled])], 9) == []


def test_the_page_says_what_it_is_of_and_filters_turns(columns):
    page = Structure(html_report(columns, "Evaluation"))
    text = "".join(page.texts)
    for said in ("tiny <1>", "2026-11-26", RULES["exact_match"].description, "Time in <b>Rome</b>?", "row2, turn 1"):
        assert said in text
    assert [json.loads(turn["data-tags"])[2] for turn in page.all("article")] == [
        "now wrong",
        "still wrong",
        "corrected",
    ]
    assert [option["value"] for option in page.all("option")].count("corrected") == 1
    assert page.texts.count("wrong value") == 4  # row1 and row2 after, row2 before, and its row of the error types
    marks = [mark["class"] for mark in page.all("mark")]
    assert marks.count("right") == 2  # what two wrong turns should have had
    assert len(page.all("main")) == len(page.all("h1")) == 1


def test_curves_are_drawn_from_two_points_on(columns):
    page = Structure(html_report(columns, "Evaluation"))
    captions = [label["aria-label"].partition(":")[0] for label in page.all("svg")]
    assert captions == ["Loss", "Learning rate"]
    assert len(page.all("circle")) == 5  # the single validation loss is next to the training loss
    two = "".join(Structure(html_report([columns[1], columns[1]], "Evaluation")).texts)
    assert "training, after training" in two


def test_metrics_are_explained_in_both_files(columns):
    metrics = report_sections(columns)[0]
    assert metrics.rows[0] == [
        "exact match",
        "0.333 ± 0.272",  # √(2/9 / 3)
        "0.333 ± 0.272",
        "turns that terminate and make exactly the reference calls, in any order; higher is better",
    ]
    markdown = markdown_report(columns, "Evaluation")
    assert "  \n  before training: clock(city=" in markdown
    assert "| model | tiny &#60;1&#62; |" in markdown


def test_an_environment_in_words():
    environment = {
        "started": "2026-11-26T04:48:57+00:00",
        "command": ["/home/me/main.py", "fit", "--data.train=[{path: a b}]"],
        "git": {"commit": "0123456789abcdef", "changed": True},
        "platform": "Linux",
        "packages": {"fc-lightning": "0.1.0", "torch": "2.13.0"},
        "cpu": {"name": "EPYC", "cores": 2},
        "gpus": [{"name": "H100", "memory_gb": 85.0}] * 2,
        "ranks": 2,
    }
    assert about_environment(environment) == {
        "command": "python /home/me/main.py fit '--data.train=[{path: a b}]'",
        "date": "2026-11-26 04:48 UTC",
        "machine": "2 cores of EPYC, H100, 85.0 GB, H100, 85.0 GB, Linux, 2 processes",
        "versions": "fc-lightning 0.1.0, torch 2.13.0, commit 0123456789 with uncommitted changes",
    }


def test_a_report_of_nothing_is_refused():
    with pytest.raises(ReportError, match="name at least one run"):
        read_runs([])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.csv", b"\x00,\xff"),
        ("metrics.csv", b"step,val/loss\nx,y"),
        ("predictions.jsonl", b"{"),
        ("predictions.jsonl", b'{"id": 1}'),
        ("predictions_before.jsonl", b"[]"),
    ],
)
def test_damaged_files_of_a_run_are_one_line(tmp_path, name, content):
    (tmp_path / "predictions.jsonl").write_text("")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ReportError, match="its files are damaged"):
        read_runs([tmp_path])
