"""Evaluation: prompts become evaluated turns, ranks put theirs together, metrics are computed, callbacks are told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed
from lightning import LightningModule, Trainer
from torch import nn
from transformers import PreTrainedTokenizerBase

from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.conversation.parsing import call_from_value, tool_from_value
from fc_lightning.evaluation.constrained import CallGrammars, GrammarConstraint
from fc_lightning.evaluation.generation import generate
from fc_lightning.evaluation.metrics import EvaluatedTurn, evaluate_turn, groups_of, tool_call_metrics

T = TypeVar("T")
IndexedTurn = tuple[int, EvaluatedTurn]  # with the turn's place in the data


class TurnGenerator:
    """Generates from batches of prompts and compares what comes.

    Args:
        tokenizer: The model's, with the tags registered.
        settings: Fields of transformers' ``GenerationConfig``.
        constrained: Whether to allow nothing but the grammar and the tools on offer.
        seed: Of sampling; the same prompts in the same batches give the same turns.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any], constrained: bool = False, seed: int = 0
    ):
        self.tokenizer, self.settings, self.constrained, self.seed = tokenizer, settings, constrained, seed
        self.end_ids = ChatTemplate.end_ids(tokenizer)
        self._grammars: CallGrammars | None = None

    @property
    def samples(self) -> int:
        """Generations from a prompt."""
        return int(self.settings.get("num_return_sequences") or 1)

    def texts(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        tools: Sequence[str],
        seed: int,
        synced_gpus: bool = False,
    ) -> list[tuple[str, bool]]:
        """Generate from prompts: the texts, several in a row for a prompt, and whether each turn ended.

        The state of the random number generators is afterwards what it was before.

        Args:
            model: A causal language model, or a PeftModel.
            prompts: Their ids.
            tools: The JSON of the tools on offer to each.
            seed: Of sampling, added to the generator's own.
            synced_gpus: See :func:`fc_lightning.evaluation.generation.generate`.
        """
        device = next(model.parameters()).device
        constraint = self._constraint(model, tools) if self.constrained else None
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed + seed)
            outputs = generate(
                model, prompts, self.settings, self.end_ids, self.tokenizer.pad_token_id, constraint, synced_gpus
            )
        return [(self.tokenizer.decode(ids), finished) for ids, finished in outputs]

    def turns(self, model: nn.Module, batch: Mapping[str, Any], synced_gpus: bool = False) -> list[IndexedTurn]:
        """Generate from a batch and compare with what was expected.

        With ``synced_gpus`` a rank without prompts goes along where its shards are needed.
        """
        orders = [order for order in batch["order"] for _ in range(self.samples)]
        if orders:
            texts = self.texts(model, batch["input_ids"], batch["tools"], batch["order"][0], synced_gpus)
        elif synced_gpus:
            self.texts(model, [[self.tokenizer.bos_token_id or 0]], ["[]"], 0, synced_gpus)
        return [
            (order, self._compare(batch, number // self.samples, number % self.samples, *texts[number]))
            for number, order in enumerate(orders)
        ]

    def _constraint(self, model: nn.Module, tools: Sequence[str]) -> GrammarConstraint:
        if self._grammars is None:
            width = int(model.get_output_embeddings().weight.shape[0])  # type: ignore[operator]
            self._grammars = CallGrammars(self.tokenizer, width, self.end_ids)
        offered = [[tool_from_value(tool) for tool in json.loads(text)] for text in tools]
        rows = [some for some in offered for _ in range(self.samples)]
        return self._grammars.constrain(rows, self.settings["max_new_tokens"])

    def _compare(self, batch: Mapping[str, Any], number: int, sample: int, text: str, finished: bool) -> EvaluatedTurn:
        gold, schema = batch["gold"][number], batch["response_schema"][number]
        return evaluate_turn(
            text,
            [call_from_value(call) for call in json.loads(batch["expected"][number] or "[]")],
            finished=finished,
            tools=[tool_from_value(tool) for tool in json.loads(batch["tools"][number])],
            gold=json.loads(gold) if gold else (),
            response_schema=json.loads(schema) if schema else None,
            answer=batch["answer"][number],
            labelled=bool(batch["expected"][number]),
            id=batch["id"][number],
            turn=batch["turn"][number],
            category=batch["category"][number],
            prompt=self.tokenizer.decode(batch["input_ids"][number]),
            sample=sample,
        )


def gather_turns(mine: list[IndexedTurn]) -> list[EvaluatedTurn]:
    """The turns of all ranks, in the order of the data."""
    return [
        turn for _, turn in sorted((pair for rank in gather_objects(mine) for pair in rank), key=lambda pair: pair[0])
    ]


def gather_objects(mine: T) -> list[T]:
    """What each rank has, in the order of ranks. All ranks must call it."""
    gathered: list[Any] = [mine]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gathered = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, mine)
    return gathered


def measure(
    mine: Sequence[EvaluatedTurn], everything: Sequence[EvaluatedTurn], device: torch.device, samples: int = 1
) -> dict[str, torch.Tensor]:
    """The metrics over all ranks: each overall, and the exact match of each group; what has no value is left out.

    Args:
        mine: This rank's turns.
        everything: All ranks' turns; they say which groups there are.
        device: Where ranks exchange tensors.
        samples: Generations from a prompt.
    """
    groups = groups_of(everything)
    metrics = tool_call_metrics(groups=groups, samples=samples).to(device)
    metrics.update(mine)
    values: dict[str, torch.Tensor] = {}
    for name, value in metrics.compute().items():
        value = value.reshape(-1)  # (1 + groups,)
        values[name] = value[0]
        if name == "exact_match":
            values |= {f"{name}/{group}": one for group, one in zip(groups, value[1:], strict=True)}
    return {name: value for name, value in values.items() if not value.isnan()}


def notify_callbacks(trainer: Trainer, module: LightningModule, evaluated: list[EvaluatedTurn]) -> None:
    """Call ``on_tool_calls_evaluated`` of every callback that defines it."""
    for callback in trainer.callbacks:
        if hook := getattr(callback, "on_tool_calls_evaluated", None):
            hook(trainer, module, evaluated)
