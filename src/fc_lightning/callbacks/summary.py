"""RunSummary: what a run is going to do, before it begins; what came out and what to do next, when it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.data.collator import Batch
from fc_lightning.data.dataloaders import supervised_counts, token_counts
from fc_lightning.data.samplers import MicroBatch, MicroBatchSampler
from fc_lightning.evaluation.evaluator import is_baseline_validation
from fc_lightning.evaluation.metrics import EvaluatedTurn
from fc_lightning.evaluation.report import read_predictions
from fc_lightning.models.attention import BY_DOCUMENT
from fc_lightning.models.flops import parameter_counts
from fc_lightning.models.memory import estimate_training_bytes, memory_in_use
from fc_lightning.models.transformers_internals import attention_implementation


class RunSummary(Callback):
    """Prints what will be trained on what, with which memory and where to; and afterwards what came out.

    Before: the model, what of it is trained, the data that is kept and skipped, packs, micro-batches, optimizer steps,
    tokens, the memory that is expected, and the run's folder. After: how often the calls were right before training
    and after it, by category, the best and the last value of the metric, time, speed, and the next command.

    What was right *before* is known where Lightning validates first: ``trainer.num_sanity_val_steps: -1``.
    """

    def __init__(self) -> None:
        self.before: list[EvaluatedTurn] = []
        self.after: list[EvaluatedTurn] = []
        self._started = self._evaluation_started = self._evaluating = 0.0
        self._tokens = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is going to happen."""
        lines = list(describe_run(trainer, pl_module))  # asks all ranks
        if trainer.is_global_zero:
            print("\n" + "\n".join(lines) + "\n", flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started, self._evaluating, self._tokens = time.monotonic(), 0.0, 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Count tokens; the count is a plain number."""
        self._tokens += batch["num_tokens"]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluation is no training."""
        self._evaluation_started = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on."""
        self._evaluating += time.monotonic() - self._evaluation_started

    def on_tool_calls_evaluated(
        self, trainer: Trainer, pl_module: LightningModule, evaluated: list[EvaluatedTurn]
    ) -> None:
        """Keep the first and the last evaluation."""
        if not trainer.sanity_checking:
            self.after = evaluated
        elif is_baseline_validation(trainer):  # a part of the data would compare with the whole of it
            self.before = evaluated
            if trainer.is_global_zero:
                print(f"before:     exact match {exact_match(evaluated):.3f} on {len(evaluated):,} turns\n", flush=True)
            if trainer.logger:
                trainer.logger.log_metrics({"val/exact_match": exact_match(evaluated)}, step=0)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what came out."""
        folder = trainer.log_dir  # asks all ranks
        tokens = int(trainer.strategy.reduce(torch.tensor(self._tokens, device=pl_module.device), reduce_op="sum"))
        if not trainer.is_global_zero:
            return
        console = Console()
        seconds = time.monotonic() - self._started
        training = max(seconds - self._evaluating, 1e-9)
        what = (
            f"in {seconds / 60:.1f} minutes, {self._evaluating / 60:.1f} of them evaluating; {tokens:,} tokens, "
            f"{tokens / training:,.0f} a second"
        )
        console.print(
            f"\n{trainer.global_step:,} optimizer steps {what if self._started else 'finished before'}",
            highlight=False,
            soft_wrap=True,
        )
        run = Path(folder or ".")
        earlier = run / "predictions_before.jsonl"  # of a run that went on
        before = self.before or (read_predictions(earlier) if earlier.is_file() else [])
        if self.after:
            console.print(_table(before, self.after))
        lines = [*_best(trainer), f"run:     {run}"]
        lines += [f"adapter: {run / 'adapter'}"] if (run / "adapter").is_dir() else []
        lines += _next(trainer, run) if (run / "config.yaml").is_file() else []  # the command line writes it
        console.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)


def describe_run(trainer: Trainer, module: Any) -> Iterator[str]:
    """The summary before training, a line each. All ranks must ask for it."""
    trained, total = parameter_counts(module.model)
    yield f"model:      {module.base} ({module.model.config.model_type}), {module.chosen}"
    yield trainable_line(trained, total)
    trainer.fit_loop.setup_data()  # not done yet where `max_steps` alone says how long it takes
    steps, folder = trainer.estimated_stepping_batches, trainer.log_dir
    data, loader = getattr(trainer, "datamodule", None), trainer.train_dataloader
    if isinstance(data, FunctionCallingDataModule):
        for split, prepared in data.prepared.items():
            if split == "test":
                continue
            yield f"{split}:".ljust(12) + prepared.report.lines(split)[0].partition(": ")[2] + _unused(prepared.report)
        if data.streaming:
            yield "train:      streamed"
    sampler, plan = getattr(loader, "sampler", None), list[MicroBatch]()
    if isinstance(sampler, MicroBatchSampler):
        plan = sampler.plan()
        packs = sum(map(len, plan))
        rows = "packs" if sampler.capacity else "rows"
        yield (
            f"an epoch:   {packs:,} {rows} in {len(plan):,} micro-batches, {len(loader):,} on each of "
            f"{trainer.world_size} device{'s' * (trainer.world_size > 1)}; {sum(sampler.lengths):,} tokens"
        )
    epochs = "" if trainer.max_epochs in (None, -1) else f", epochs: {trainer.max_epochs} at most"
    micro = trainer.accumulate_grad_batches
    yield f"training:   {steps:,.0f} optimizer steps of {micro} micro-batch{'es' * (micro > 1)} a device{epochs}"
    if isinstance(data, FunctionCallingDataModule):
        yield f"memory:     {_memory(trainer, module, data, plan)}"
    yield f"run:        {folder}"


def trainable_line(trained: int, total: int) -> str:
    """How many parameters are trained, in PEFT's words."""
    return f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}"


def exact_match(turns: Sequence[EvaluatedTurn]) -> float:
    """Share of turns whose calls are exactly right."""
    return sum(turn.exact_match for turn in turns) / len(turns)


def _unused(report: Any) -> str:
    """What became of the other rows."""
    return f"; skipped {len(report.skipped):,}, too long {len(report.too_long):,}"


def _memory(trainer: Trainer, module: Any, data: FunctionCallingDataModule, plan: list[MicroBatch]) -> str:
    device = trainer.strategy.root_device
    tokens, attended = data.batch_size * data.max_length, data.max_length
    supervised = min(module.head_chunk, tokens)
    if plan:
        lengths, counts = (of(data.prepared["train"].documents) for of in (token_counts, supervised_counts))
        if not data.packing:
            tokens, attended = data.batch_size * max(lengths), max(lengths)
        elif attention_implementation(module.model.config) == BY_DOCUMENT:
            attended = sum(length * length for length in lengths) // sum(lengths)
        most = max(sum(counts[document] for row in batch for document in row) for batch in plan)
        supervised = min(module.head_chunk, most)
    half = str(trainer.precision).startswith(("bf16", "16"))
    added = estimate_training_bytes(module.model, tokens, attended, supervised, module.gradient_checkpointing, half)
    held = memory_in_use(device)
    where = "on each GPU" if device.type == "cuda" else "of the process"
    return (
        f"about {(held + added) / 1e9:.1f} GB expected {where} while training: {held / 1e9:.1f} GB are taken now, "
        f"{added / 1e9:.1f} GB are gradients, optimizer, activations and logits"
    )


def _best(trainer: Trainer) -> list[str]:
    """The best and the last value of the metric that checkpoints are kept by."""
    kept = trainer.checkpoint_callback
    name = getattr(kept, "monitor", None) or "val/exact_match"
    score = getattr(kept, "best_model_score", None)
    last = trainer.callback_metrics.get(name)
    out = [f"best:    {name} {float(score):.3f}, {kept.best_model_path}"] if score is not None else []
    return out + ([f"last:    {name} {float(last):.3f}"] if last is not None else [])


def _next(trainer: Trainer, run: Path) -> list[str]:
    """Commands to go on with."""
    program = "python main.py" if sys.argv[0].endswith(".py") else "fc-lightning"
    best = getattr(trainer.checkpoint_callback, "best_model_path", "") or "best"
    given = f"--config {run / 'config.yaml'} --ckpt_path {best}"
    return [f"next:    {program} export {given} --output exported", f"         {program} chat {given}"]


def _table(before: Sequence[EvaluatedTurn], after: Sequence[EvaluatedTurn]) -> Table:
    table = Table("category", "turns", "before", "after", title="exact match")
    for category in [*sorted({turn.category for turn in after if turn.category}), None]:
        columns = [[turn for turn in turns if category in (None, turn.category)] for turns in (before, after)]
        shown = [f"{exact_match(turns):.3f}" if turns else "–" for turns in columns]
        table.add_row("all" if category is None else category, str(len(columns[1])), *shown)
    return table
