"""Free-running evaluation: each prompt contains the model's own earlier turns, not the reference as in teacher forcing.

As long as the model's calls equal the reference calls, the reference responses and the user's next messages are valid
answers to them, so the conversation continues::

    teacher-forced prompt of turn 2   [system, user]  reference turn 1 <end> [response]
    free-running prompt of turn 2     [system, user]  the model's turn <end> [response]

It stops at the first turn that is not an exact match. Where the model's turn equals the reference verbatim, both
prompts are identical, so the next turn is not generated again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import nn

from fc_lightning.evaluation.evaluator import IndexedTurn, TurnGenerator, gather_objects
from fc_lightning.evaluation.turns import EvaluatedTurn

PromptRow = Mapping[str, Any]  # one prompt of a `PromptBatch`


@dataclass(frozen=True)
class PlayedConversation:
    """The outcome of one conversation.

    Attributes:
        order: Index of its first prompt in the data.
        id: Its id.
        num_turns: Number of model turns.
        first_mistake: Index of the first turn that is not an exact match, counted from 1; None if all turns are.
    """

    order: int
    id: str
    num_turns: int
    first_mistake: int | None


def rows_of(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The prompts of a batch, one row each."""
    columns = {key: values for key, values in batch.items() if key != "limits"}
    return [{key: values[number] for key, values in columns.items()} for number in range(len(batch["order"]))]


def group_conversations(rows: Iterable[PromptRow]) -> list[list[PromptRow]]:
    """The prompts of each conversation, in order; perturbed prompts and those after a missing turn are skipped."""
    conversations: list[list[PromptRow]] = []
    for row in sorted((row for row in rows if not row["perturbation"]), key=lambda row: row["order"]):
        previous = conversations[-1][-1] if conversations else None
        if row["turn"] == 0:
            conversations.append([row])
        elif previous is not None and (row["id"], row["turn"]) == (previous["id"], previous["turn"] + 1):
            conversations[-1].append(row)
    return conversations


def play_conversations(
    generator: TurnGenerator,
    model: nn.Module,
    conversations: Sequence[Sequence[PromptRow]],
    teacher_forced: Mapping[int, EvaluatedTurn],
    limits: tuple[int, int],
    synced_gpus: bool = False,
) -> list[PlayedConversation]:
    """Roll out conversations from the model's own turns, to the end or to the first mistake, all at once, turn by turn.

    Args:
        generator: Generates and evaluates turns.
        model: A causal language model.
        conversations: For each conversation the prompts of its turns, with the reference history.
        teacher_forced: The evaluated turn of each of these prompts, by its order.
        limits: Largest number of tokens and of prompts that are generated at once.
        synced_gpus: Whether all ranks play the same conversations with a sharded model.
    """
    played = [teacher_forced[rows[0]["order"]] for rows in conversations]  # the last turn of each conversation
    prompts = [list(rows[0]["input_ids"]) for rows in conversations]
    mistakes: list[int | None] = [None if turn.exact_match else 1 for turn in played]
    for turn in range(1, max(map(len, conversations), default=0)):
        # 1) The conversations that continue, and what their prompts are now.
        active = [n for n, rows in enumerate(conversations) if mistakes[n] is None and turn < len(rows)]
        for n in active:
            prompts[n] = _next_prompt(generator, prompts[n], played[n].text, conversations[n][turn - 1 : turn + 1])
        # 2) Generate where the prompt differs from the reference prompt.
        rows = {n: {**conversations[n][turn], "input_ids": prompts[n]} for n in active}
        changed = [n for n in active if prompts[n] != list(conversations[n][turn]["input_ids"])]
        generated = {}
        if changed:
            batch: dict[str, Any] = {key: [rows[n][key] for n in changed] for key in rows[changed[0]]}
            turns = generator.turns(model, {**batch, "limits": limits}, synced_gpus)
            generated = {order: one for order, one in turns if one.sample == 0}
        # 3) Judge.
        for n in active:
            order = conversations[n][turn]["order"]
            played[n] = generated.get(order, teacher_forced[order])
            mistakes[n] = None if played[n].exact_match else turn + 1
    return [
        PlayedConversation(rows[0]["order"], rows[0]["id"], len(rows), mistake)
        for rows, mistake in zip(conversations, mistakes, strict=True)
    ]


def conversation_metrics(conversations: Sequence[PlayedConversation]) -> dict[str, float]:
    """The fraction of conversations without a mistake, and the mean index of the first incorrect turn."""
    if not conversations:
        return {}
    mistakes = [played.first_mistake for played in conversations if played.first_mistake is not None]
    metrics = {"conversation_match": 1 - len(mistakes) / len(conversations)}
    return metrics | ({"first_mistake": sum(mistakes) / len(mistakes)} if mistakes else {})


def measure_conversations(
    generator: TurnGenerator,
    model: nn.Module,
    local_rows: Sequence[PromptRow],
    local_turns: Sequence[IndexedTurn],
    data: Any = None,
    is_sharded: bool = False,
) -> dict[str, float]:
    """Play the conversations of an evaluation, each on one rank, and measure them. All ranks must call it.

    Args:
        generator: Generates and evaluates turns.
        model: A causal language model.
        local_rows: The prompts that this rank has evaluated.
        local_turns: Their teacher-forced turns.
        data: The data module, whose limits on generation batches hold here too.
        is_sharded: Whether all ranks must play all conversations, as each has a part of the model.
    """
    rows = [row for rank_rows in gather_objects(local_rows) for row in rank_rows]
    turns = [turn for rank_turns in gather_objects(local_turns) for turn in rank_turns]
    teacher_forced = {order: turn for order, turn in turns if turn.sample == 0}
    conversations = group_conversations(rows)
    rank, world_size = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    share = conversations if is_sharded else conversations[rank::world_size]
    limits = getattr(data, "generation_batch_tokens", 32768), getattr(data, "generation_batch_size", 64)
    played = play_conversations(generator, model, share, teacher_forced, limits, is_sharded)
    everything = {one.order: one for rank_played in gather_objects(played) for one in rank_played}
    return conversation_metrics(list(everything.values()))


def _next_prompt(generator: TurnGenerator, prompt: list[int], text: str, reference: Sequence[PromptRow]) -> list[int]:
    """The prompt so far, the model's turn, and what follows the reference turn."""
    before, after = (list(row["input_ids"]) for row in reference)
    reference_turn = after[len(before) :]
    end = next(place for place, token in enumerate(reference_turn) if token in generator.end_ids)
    said = generator.tokenizer.encode(text, add_special_tokens=False)
    return [*prompt, *said, *reference_turn[end:]]
