"""Robustness: how results change when held-out prompts are perturbed (``data.perturbations``)."""

from __future__ import annotations

from collections.abc import Sequence

from fc_lightning.data.augmentation import PERTURBATION_LABELS
from fc_lightning.evaluation.turns import EvaluatedTurn


def plain_turns(turns: Sequence[EvaluatedTurn]) -> list[EvaluatedTurn]:
    """The turns whose prompts are not perturbed."""
    return [turn for turn in turns if not turn.perturbation]


def robustness(turns: Sequence[EvaluatedTurn]) -> dict[str, float]:
    """The metrics of perturbed turns, by the names they are logged under.

    ``exact_match/shuffled``, ``…/distracted`` and ``…/masked`` are shares of the perturbed turns, and
    ``verdict_changed/…`` the fraction of them that are judged differently than the unperturbed turn. Where the called
    tool was dropped there is nothing left to call: ``abstention/dropped``.

    Args:
        turns: All turns, plain and perturbed.

    Example:
        >>> from fc_lightning.evaluation.turns import evaluate_turn
        >>> about = {"id": "a", "perturbation": "shuffle_tools"}
        >>> robustness([evaluate_turn("Hi.", [], id="a"), evaluate_turn("<think>", [], finished=False, **about)])
        {'exact_match/shuffled': 0.0, 'verdict_changed/shuffled': 1.0}
    """
    plain = {(turn.id, turn.turn, turn.sample): turn.exact_match for turn in plain_turns(turns)}
    values: dict[str, float] = {}
    for name, label in PERTURBATION_LABELS.items():
        perturbed = [turn for turn in turns if turn.perturbation == name]
        if not perturbed:
            continue
        correct = sum(turn.exact_match for turn in perturbed) / len(perturbed)
        if name == "drop_tool":
            values[f"abstention/{label}"] = correct
            continue
        values[f"exact_match/{label}"] = correct
        # With `trainer.limit_val_batches` the plain turn may not be among the evaluated ones.
        pairs = [(turn, plain.get((turn.id, turn.turn, turn.sample))) for turn in perturbed]
        changed = [turn.exact_match != verdict for turn, verdict in pairs if verdict is not None]
        if changed:
            values[f"verdict_changed/{label}"] = sum(changed) / len(changed)
    return values
