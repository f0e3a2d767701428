"""The Berkeley leaderboard: rows of a package with its layout, and the table against plain counting."""

import pytest
from tests.helpers.bfcl import FUNCTION, write_bfcl_package

from fc_lightning.conversation.types import ToolCall
from fc_lightning.data.bfcl import CATEGORIES, IRRELEVANCE, LIVE, NON_LIVE
from fc_lightning.data.sources import DataError, Source
from fc_lightning.evaluation.leaderboard import leaderboard
from fc_lightning.evaluation.metrics import evaluate_turn
from fc_lightning.evaluation.report import html_report, markdown_report
from fc_lightning.evaluation.report_tables import EvaluatedRun

RIGHT = '<tool_call>{"name": "clock", "arguments": {"city": "rome"}}</tool_call>'


@pytest.fixture
def bfcl_package(tmp_path, monkeypatch):
    write_bfcl_package(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


def test_questions_functions_and_answers_are_read(bfcl_package):
    source = Source("bfcl:all")
    conversations = [source.read(row, place) for place, row in source.rows()]
    assert [one.id for one in conversations] == [f"{name}_{number}" for name in CATEGORIES for number in range(2)]
    for conversation in conversations:
        assert not conversation.defects
        assert conversation.tools[0].parameters == FUNCTION["parameters"]
        assert [message.role for message in conversation.messages] == ["user", "assistant"]
        called = [] if conversation.category in IRRELEVANCE else [ToolCall("clock", {"city": "Rome"})]
        assert list(conversation.messages[-1].tool_calls) == called
        assert conversation.gold == tuple({"clock": {"city": ["Rome", "Roma"]}} for _ in called)
    assert [place.rpartition("/")[2] for place, _ in Source("bfcl:live_simple", limit=1).rows()] == [
        "live_simple.jsonl:1"
    ]


def test_an_unknown_category_and_a_missing_package(bfcl_package, monkeypatch):
    with pytest.raises(DataError, match="unknown category; available: all, simple_python"):
        list(Source("bfcl:simple").rows())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install --no-deps bfcl-eval"):
        list(Source("bfcl:all").rows())


def turns(counts):
    """For each category that many turns, of which so many are right."""
    for category, (number, num_right) in counts.items():
        for n in range(number):
            gold = [] if category in IRRELEVANCE else [{"clock": {"city": ["Rome"]}}]
            text = RIGHT if (n < num_right) == bool(gold) else "Hello."
            expected = [ToolCall("clock", {"city": "Rome"})] if gold else []
            yield evaluate_turn(text, expected, gold=gold, category=category, id=f"{category}_{n}")


def test_the_means_are_the_leaderboards():
    sizes = dict(
        zip(
            [*NON_LIVE, *LIVE, *IRRELEVANCE],
            [(4, 1), (2, 1), (2, 2), (1, 0), (6, 3), (2, 2), (1, 0), (1, 1), (5, 4), (2, 0)],
            strict=True,
        )
    )
    scores = leaderboard([*turns(sizes), evaluate_turn("Hi.", [], category="other")])
    assert {name: scores[name] for name in sizes} == {name: (n, right / n) for name, (n, right) in sizes.items()}
    assert scores["non-live"] == (9, pytest.approx((1 / 4 + 1 / 2 + 1 + 0) / 4))  # of categories
    assert scores["live"] == (10, pytest.approx(6 / 10))  # of questions
    report = markdown_report([EvaluatedRun("run", list(turns(sizes)))], "Evaluation")
    assert "## Berkeley Function Calling Leaderboard" in report
    assert "| non-live | 9 | 0.438 |" in report
    assert "Berkeley" in html_report([EvaluatedRun("run", list(turns(sizes)))], "Evaluation")


def test_a_mean_of_some_categories_is_not_shown():
    some = list(turns({"simple_python": (2, 1), "live_simple": (2, 2)}))
    assert leaderboard(some) == {"simple_python": (2, 0.5), "live_simple": (2, 1.0)}
    assert "Berkeley" not in markdown_report([EvaluatedRun("run", [evaluate_turn("Hi.", [])])], "Evaluation")
