"""The evaluation loop: generate from prompts, gather the turns of all ranks, compute metrics, notify callbacks."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed
from lightning import LightningModule, Trainer
from torch import nn
from transformers import PreTrainedTokenizerBase

from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.chat_template.tool_formats import ToolFormat, native_syntax
from fc_lightning.conversation.parsing import call_from_value, tool_from_value
from fc_lightning.evaluation.constrained import CallGrammars, GrammarConstraint
from fc_lightning.evaluation.generation import NO_LIMITS, generate, ignore_step
from fc_lightning.evaluation.metrics import EvaluatedTurn, evaluate_turn, groups_of, tool_call_metrics
from fc_lightning.evaluation.robustness import plain_turns, robustness
from fc_lightning.utils.errors import UserError, first_line

T = TypeVar("T")
IndexedTurn = tuple[int, EvaluatedTurn]  # with its index in the data


class TurnGenerator:
    """Generates model turns from batches of prompts and evaluates them.

    Args:
        tokenizer: The model's tokenizer, with the tags registered.
        settings: Fields of transformers' ``GenerationConfig``.
        constrained: Whether to constrain decoding to the grammar and the offered tools.
        tool_format: The language of tool calls; see :func:`fc_lightning.chat_template.tool_formats.native_syntax`.
        seed: Seed of sampling; the same prompts in the same batches give the same turns.

    Attributes:
        on_step: See :func:`fc_lightning.evaluation.generation.generate`.

    Raises:
        BaseModelError: If the vocabulary does not have the tokens of ``tool_format``.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        settings: Mapping[str, Any],
        constrained: bool = False,
        tool_format: ToolFormat = "auto",
        seed: int = 0,
    ):
        self.syntax = native_syntax(tokenizer, tool_format)
        self.tokenizer = tokenizer
        self.settings = settings
        self.constrained = constrained
        self.seed = seed
        self.on_step: Callable[[int], None] = ignore_step
        self.end_ids = ChatTemplate.end_ids(tokenizer, self.syntax)
        self._grammars: CallGrammars | None = None

    @property
    def samples(self) -> int:
        """Generations per prompt."""
        return int(self.settings.get("num_return_sequences") or 1)

    def texts(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        tools: Sequence[str],
        seed: int,
        synced_gpus: bool = False,
        limits: tuple[int, int] = NO_LIMITS,
    ) -> list[tuple[str, bool]]:
        """Generate from prompts: the texts, those of one prompt in a row, and whether each turn ended.

        The state of the random number generators is restored afterwards.

        Args:
            model: A causal language model, not a wrapper around one.
            prompts: Token IDs of each prompt.
            tools: For each prompt, the JSON of the offered tools.
            seed: Seed of sampling, added to the generator's.
            synced_gpus: See :func:`fc_lightning.evaluation.generation.generate`.
            limits: See :func:`fc_lightning.evaluation.generation.generate`.
        """
        device = next(model.parameters()).device
        constraint = self._constraint(model, tools) if self.constrained else None
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed + seed)
            try:
                outputs = generate(
                    model,
                    prompts,
                    self.settings,
                    self.end_ids,
                    self.tokenizer.pad_token_id,
                    constraint,
                    synced_gpus,
                    self.on_step,
                    limits,
                )
            except ValueError as error:
                if "/transformers/generation/" not in traceback.extract_tb(error.__traceback__)[-1].filename:
                    raise
                raise UserError(f"model.generation: {first_line(error)}") from error
        return [(self.tokenizer.decode(ids), finished) for ids, finished in outputs]

    def turns(self, model: nn.Module, batch: Mapping[str, Any], synced_gpus: bool = False) -> list[IndexedTurn]:
        """Generate from a batch of prompts and compare with the expected turns.

        With ``synced_gpus``, a rank without prompts takes part all the same, because its shards are needed.
        """
        seed = next(iter(batch["order"]), 0)
        limits = batch.get("limits", NO_LIMITS)
        texts = self.texts(model, batch["input_ids"], batch["tools"], seed, synced_gpus, limits)
        return [
            (order, self._evaluate(batch, prompt, sample, *texts[prompt * self.samples + sample]))
            for prompt, order in enumerate(batch["order"])
            for sample in range(self.samples)
        ]

    def _constraint(self, model: nn.Module, tools: Sequence[str]) -> GrammarConstraint:
        if self._grammars is None:
            num_logits = int(model.get_output_embeddings().weight.shape[0])  # type: ignore[operator]
            self._grammars = CallGrammars(self.tokenizer, num_logits, self.end_ids, self.syntax)
        offered = [[tool_from_value(tool) for tool in json.loads(text)] for text in tools]
        rows = [prompt_tools for prompt_tools in offered for _ in range(self.samples)]
        return self._grammars.constrain(rows, self.settings["max_new_tokens"])

    def _evaluate(self, batch: Mapping[str, Any], prompt: int, sample: int, text: str, finished: bool) -> EvaluatedTurn:
        gold, schema = batch["gold"][prompt], batch["response_schema"][prompt]
        return evaluate_turn(
            text,
            [call_from_value(call) for call in json.loads(batch["expected"][prompt] or "[]")],
            finished=finished,
            syntax=self.syntax,
            tools=[tool_from_value(tool) for tool in json.loads(batch["tools"][prompt])],
            gold=json.loads(gold) if gold else (),
            response_schema=json.loads(schema) if schema else None,
            answer=batch["answer"][prompt],
            labelled=bool(batch["expected"][prompt]),
            id=batch["id"][prompt],
            turn=batch["turn"][prompt],
            category=batch["category"][prompt],
            prompt=self.tokenizer.decode(batch["input_ids"][prompt]),
            sample=sample,
            perturbation=batch["perturbation"][prompt],
        )


def gather_turns(local_turns: list[IndexedTurn]) -> list[EvaluatedTurn]:
    """The turns of all ranks in the order of the data. All ranks must call it."""
    turns = [indexed for rank_turns in gather_objects(local_turns) for indexed in rank_turns]
    return [turn for _, turn in sorted(turns, key=lambda indexed: indexed[0])]


def gather_objects(local: T) -> list[T]:
    """One object per rank, in the order of ranks. All ranks must call it."""
    gathered: list[Any] = [local]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gathered = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, local)
    return gathered


def measure(
    local_turns: Sequence[EvaluatedTurn],
    all_turns: Sequence[EvaluatedTurn],
    device: torch.device,
    samples: int = 1,
) -> dict[str, torch.Tensor]:
    """The metrics over all ranks: each overall, and exact match for each group; those without a value are omitted.

    Perturbed turns count in the metrics of :func:`fc_lightning.evaluation.robustness.robustness` alone.

    Args:
        local_turns: Turns of this rank.
        all_turns: Turns of all ranks; every rank needs the same groups.
        device: Device on which ranks exchange tensors.
        samples: Generations per prompt.
    """
    groups = groups_of(plain_turns(all_turns))
    metrics = tool_call_metrics(groups=groups, samples=samples).to(device)
    metrics.update(plain_turns(local_turns))
    values: dict[str, torch.Tensor] = {}
    for name, value in metrics.compute().items():
        overall, *by_group = value.reshape(-1)  # (1 + groups,)
        values[name] = overall
        if name == "exact_match":
            values |= {f"{name}/{group}": share for group, share in zip(groups, by_group, strict=True)}
    values |= {name: torch.tensor(share, device=device) for name, share in robustness(all_turns).items()}
    return {name: value for name, value in values.items() if not value.isnan()}


def is_baseline_validation(trainer: Trainer) -> bool:
    """Whether this is the validation of the base model on all prompts, before training.

    Lightning runs it with ``trainer.num_sanity_val_steps: -1``; any other sanity check covers a part of the data only.
    """
    return bool(trainer.sanity_checking) and math.isinf(trainer.num_sanity_val_steps)


def notify_callbacks(trainer: Trainer, module: LightningModule, evaluated: list[EvaluatedTurn]) -> None:
    """Call ``on_tool_calls_evaluated`` of every callback that defines it, and its counterpart for perturbed turns."""
    hooks = {"on_tool_calls_evaluated": plain_turns(evaluated)}
    if perturbed := [turn for turn in evaluated if turn.perturbation]:
        hooks["on_perturbed_calls_evaluated"] = perturbed
    for name, turns in hooks.items():
        for callback in trainer.callbacks:
            if hook := getattr(callback, name, None):
                hook(trainer, module, turns)
