"""Standard errors against resampling, and the paired test against all ways to split discordant turns."""

import itertools
import random
import statistics

import pytest

from fc_lightning.conversation.types import ToolCall
from fc_lightning.evaluation.metrics import evaluate_turn
from fc_lightning.evaluation.report import html_report, markdown_report
from fc_lightning.evaluation.report_tables import EvaluatedRun
from fc_lightning.evaluation.significance import PairedComparison, compare_turns, holm_adjusted, standard_error


def turn(right, id="x", number=0, expected=()):
    return evaluate_turn("Hello.", list(expected) if right else [ToolCall("f", {})], id=id, turn=number)


def test_standard_errors_as_of_resampled_conversations():
    rng = random.Random(0)
    conversations = [[rng.random() < 0.7] * rng.choice([1, 1, 4]) for _ in range(60)]  # turns fail together
    turns = [turn(right, str(n), m) for n, rights in enumerate(conversations) for m, right in enumerate(rights)]
    resampled = []
    for _ in range(4000):
        chosen = [right for rights in rng.choices(conversations, k=60) for right in rights]
        resampled.append(sum(chosen) / len(chosen))
    error = standard_error(turns, "exact_match")
    assert error == pytest.approx(statistics.stdev(resampled), rel=0.06)
    share = sum(map(sum, conversations)) / len(turns)
    assert error > 1.3 * (share * (1 - share) / len(turns)) ** 0.5  # more than if turns were independent


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (0, 5), (2, 7), (4, 4), (6, 1)])
def test_mcnemar_counts_all_splits(only_first, only_second):
    number = only_first + only_second
    splits = list(itertools.product([0, 1], repeat=number))
    uneven = abs(only_first - only_second)
    expected = sum(abs(number - 2 * sum(split)) >= uneven for split in splits) / len(splits)
    assert PairedComparison(30, only_first, only_second).p_value == pytest.approx(expected)


def test_turns_are_paired_by_conversation_and_number():
    first = [turn(n < 6, str(n)) for n in range(10)]
    second = [turn(n < 9, str(n)) for n in reversed(range(1, 12))]
    comparison = compare_turns(first, second)
    assert comparison == PairedComparison(9, only_first=0, only_second=3)
    differences = [0] * 6 + [1] * 3
    assert comparison.difference == pytest.approx(statistics.mean(differences))
    assert comparison.standard_error == pytest.approx(statistics.pstdev(differences) / 9**0.5)
    assert compare_turns(first, [turn(True, "other")]) is None


def test_the_report_says_which_differences_are_larger_than_chance():
    columns = [
        EvaluatedRun(name, [turn(n < num_right, str(n)) for n in range(40)])
        for name, num_right in (("base", 10), ("first", 30), ("second", 31))
    ]
    report = markdown_report(columns, "Evaluation")
    lines = {cells[1].strip(): cells[-2].strip() for line in report.splitlines() if len(cells := line.split("|")) == 9}
    assert {name: lines[name] for name in ("first – base", "second – base", "second – first")} == {
        "first – base": "yes",
        "second – base": "yes",
        "second – first": "no",
    }
    assert "| exact match | 0.250 ± 0.068 | 0.750 ± 0.068 |" in report
    assert "McNemar" in html_report(columns, "Evaluation")
    assert "## Differences" not in markdown_report(columns[:1], "Evaluation")


def test_many_equal_pairs_are_rarely_called_different():
    assert holm_adjusted([]) == []
    assert holm_adjusted([0.03, 0.03, 0.03]) == pytest.approx([0.09, 0.09, 0.09])
    assert holm_adjusted([0.6, 0.001]) == pytest.approx([0.6, 0.002])
