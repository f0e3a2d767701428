"""Robustness: perturbed turns have metrics of their own, and plain ones count as if there were no others."""

from types import SimpleNamespace

import pytest
import torch

from fc_lightning.conversation.types import ToolCall
from fc_lightning.evaluation.evaluator import measure, notify_callbacks
from fc_lightning.evaluation.robustness import robustness
from fc_lightning.evaluation.turns import EvaluatedTurn, evaluate_turn

CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'


def turn(id: str, right: bool, perturbation: str = "") -> EvaluatedTurn:
    expected = [] if perturbation == "drop_tool" else [ToolCall("f", {})]
    text = CALL if right != (perturbation == "drop_tool") else "No."
    return evaluate_turn(text, expected, id=id, category="one", perturbation=perturbation)


TURNS = [
    *(turn(id, right) for id, right in zip("abcd", (True, True, False, False), strict=True)),
    *(turn(id, right, "mask_names") for id, right in zip("abcd", (True, False, False, True), strict=True)),
    *(turn(id, right, "shuffle_tools") for id, right in zip("abc", (True, True, True), strict=True)),
    *(turn(id, right, "drop_tool") for id, right in zip("ab", (True, False), strict=True)),
]


def test_perturbed_turns_have_names_of_their_own():
    assert robustness(TURNS) == {
        "exact_match/shuffled": 1.0,
        "verdict_changed/shuffled": pytest.approx(1 / 3),
        "exact_match/masked": 0.5,
        "verdict_changed/masked": 0.5,
        "abstention/dropped": 0.5,
    }
    assert robustness(TURNS[:4]) == {}
    assert robustness(TURNS[5:7]) == {"exact_match/masked": 0.0}  # without the plain turns nothing to compare with


def test_the_plain_metrics_are_those_without_perturbations():
    plain = measure(TURNS[:4], TURNS[:4], torch.device("cpu"))
    both = measure(TURNS[2:9], TURNS, torch.device("cpu"))  # another rank's share: only its plain turns count here
    assert measure(TURNS, TURNS, torch.device("cpu")).items() >= plain.items()
    assert both["exact_match"] == 0.0
    assert both["exact_match/shuffled"] == 1.0
    assert plain["exact_match"] == 0.5


def test_callbacks_receive_plain_and_perturbed_turns_apart():
    received = []

    class Both:
        def on_tool_calls_evaluated(self, trainer, module, evaluated):
            received.append(("plain", evaluated))

        def on_perturbed_calls_evaluated(self, trainer, module, evaluated):
            received.append(("perturbed", evaluated))

    trainer = SimpleNamespace(callbacks=[Both(), object()])
    notify_callbacks(trainer, None, TURNS)
    assert received == [("plain", TURNS[:4]), ("perturbed", TURNS[4:])]
    received.clear()
    notify_callbacks(trainer, None, TURNS[:4])
    assert received == [("plain", TURNS[:4])]
