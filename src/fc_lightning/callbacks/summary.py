"""RunSummary: the plan of a run before it starts, its results and the next commands when it ends."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from fc_lightning.callbacks.report import EvaluationReport
from fc_lightning.conversation.parsing import dump_json
from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.data.collator import Batch
from fc_lightning.data.dataloaders import is_prompt_batch, supervised_counts, token_counts
from fc_lightning.data.samplers import MicroBatch, MicroBatchSampler
from fc_lightning.evaluation.evaluator import is_baseline_validation
from fc_lightning.evaluation.metrics import EvaluatedTurn
from fc_lightning.evaluation.report import read_predictions
from fc_lightning.evaluation.report_turns import question_of
from fc_lightning.models.attention import BY_DOCUMENT
from fc_lightning.models.flops import parameter_counts
from fc_lightning.models.memory import estimate_training_bytes, is_checkpointing, memory_in_use
from fc_lightning.models.transformers_internals import attention_implementation
from fc_lightning.training.checkpoint_io import newest_first
from fc_lightning.training.run_folders import monitoring_checkpoint
from fc_lightning.utils.escaping import printable_text, shorten
from fc_lightning.utils.progress import format_duration


class RunSummary(Callback):
    """Prints the plan of a run before it starts, and its results when it ends.

    Before: the model, its trainable parameters, rows used and skipped, packs, micro-batches, optimizer steps, tokens,
    expected memory, and the run's folder. After: exact match by category, a sample question with the calls before and
    after training, the best and the last value of the monitored metric, time, speed, report and next commands.
    ``validate`` and ``test`` end with the metrics, exact match by category, and the report.

    Exact match *before* training is known if Lightning validates first: ``trainer.num_sanity_val_steps: -1``.
    """

    def __init__(self) -> None:
        self.before: list[EvaluatedTurn] = []
        self.after: list[EvaluatedTurn] = []
        self._started = 0.0
        self._evaluation_started = 0.0
        self._evaluation_seconds = 0.0
        self._tokens = 0
        # The sanity check before training
        self._batch_started = 0.0
        self._generation_seconds = 0.0
        self._num_prompts = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the plan."""
        lines = list(describe_run(trainer, pl_module))  # a collective
        if trainer.is_global_zero:
            print("\n" + "\n".join(lines) + "\n", flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()
        self._evaluation_seconds = 0.0
        self._tokens = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Count tokens; the count is a plain number, so this does not synchronize the device."""
        self._tokens += batch["num_tokens"]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pause the clock of training."""
        self._evaluation_started = time.monotonic()

    def on_validation_batch_start(self, *_: Any) -> None:
        """Start the clock of a batch."""
        self._batch_started = time.monotonic()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Measure how long generation takes, before training."""
        if trainer.sanity_checking and is_prompt_batch(batch):
            self._generation_seconds += time.monotonic() - self._batch_started
            self._num_prompts += len(batch["order"])

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print how long an evaluation will take."""
        if not trainer.is_global_zero or not self._num_prompts:
            return
        total = sum(map(len, trainer.val_dataloaders[1].sampler))  # on this rank, and about as many on the others
        seconds = self._generation_seconds / self._num_prompts * total
        measured = f"measured on {self._num_prompts} of {total} prompts"
        print(f"evaluation: about {format_duration(seconds)} each, {measured}\n", flush=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resume the clock of training, or print the results of ``validate``."""
        self._evaluation_seconds += time.monotonic() - self._evaluation_started
        self._print_evaluation(trainer, "validate")

    def on_tool_calls_evaluated(
        self, trainer: Trainer, pl_module: LightningModule, evaluated: list[EvaluatedTurn]
    ) -> None:
        """Keep the evaluation before training and the last one."""
        if is_baseline_validation(trainer):
            self.before = evaluated
            if trainer.is_global_zero:
                print(f"before:     exact match {exact_match(evaluated):.3f} on {len(evaluated):,} turns\n", flush=True)
            if trainer.logger:
                trainer.logger.log_metrics({"val/exact_match": exact_match(evaluated)}, step=0)
        elif not trainer.sanity_checking:
            self.after = evaluated

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the results."""
        run = Path(trainer.log_dir or ".")  # a collective
        tokens = int(trainer.strategy.reduce(torch.tensor(self._tokens, device=pl_module.device), reduce_op="sum"))
        if not trainer.is_global_zero:
            return
        print(f"\n{self._duration(trainer, tokens)}")
        earlier = run / "predictions_before.jsonl"  # from before the run was interrupted
        before = self.before or (read_predictions(earlier) if earlier.is_file() else [])
        if self.after:
            Console().print(_results_table({"before": before, "after": self.after}))
            print(*map(printable_text, _example(before, self.after)), "", sep="\n")
        lines = [*_best_and_last(trainer), f"run:     {run}"]
        lines += [f"adapter: {run / 'adapter'}"] if (run / "adapter").is_dir() else []
        lines += _report(trainer, run)
        lines += _next_commands(trainer, run) if (run / "config.yaml").is_file() else []  # not in plain Python use
        print(*lines, sep="\n", flush=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the results of ``test``."""
        self._print_evaluation(trainer, "test")

    def _print_evaluation(self, trainer: Trainer, subcommand: str) -> None:
        if trainer.state.fn != subcommand:
            return
        run = Path(trainer.log_dir or ".")  # a collective
        if not trainer.is_global_zero or not self.after:
            return
        metrics = Table("metric", "value")
        for name, value in sorted(trainer.callback_metrics.items()):
            if "exact_match/" not in name:
                metrics.add_row(name, f"{float(value):.4f}")
        Console().print(metrics, _results_table({"exact match": self.after}))
        print(f"run:     {run}", *_report(trainer, run), sep="\n", flush=True)

    def _duration(self, trainer: Trainer, tokens: int) -> str:
        steps = _num_steps(trainer.global_step)
        if not self._started:
            return f"{steps}, already finished"
        seconds = time.monotonic() - self._started
        training_seconds = max(seconds - self._evaluation_seconds, 1e-9)
        share = self._evaluation_seconds / max(seconds, 1e-9)
        return (
            f"{steps} in {format_duration(seconds)}, of which {format_duration(self._evaluation_seconds)} "
            f"({share:.1%}) evaluation; {tokens:,} tokens, {tokens / training_seconds:,.0f} tokens/s"
        )


def describe_run(trainer: Trainer, module: Any) -> Iterator[str]:
    """The plan of a run, line by line. A collective: all ranks must call it."""
    yield f"model:      {module.base} ({module.model.config.model_type}), {module.chosen}"
    yield trainable_line(*parameter_counts(module.model))
    trainer.fit_loop.setup_data()  # not done yet if the run's length is given by `max_steps` alone
    folder = trainer.log_dir
    data = getattr(trainer, "datamodule", None)
    sampler = getattr(trainer.train_dataloader, "sampler", None)
    plan = sampler.plan() if isinstance(sampler, MicroBatchSampler) else []
    if isinstance(data, FunctionCallingDataModule):
        yield from _data_lines(data)
    if isinstance(sampler, MicroBatchSampler):
        yield _epoch_line(sampler, plan, len(trainer.train_dataloader), trainer.world_size)
    micro = trainer.accumulate_grad_batches
    epochs = trainer.max_epochs
    limit = f", max {epochs} epoch{'s' * (epochs > 1)}" if epochs not in (None, -1) else ""
    yield (
        f"training:   {_num_steps(max(0, trainer.estimated_stepping_batches))} of {micro} "
        f"micro-batch{'es' * (micro > 1)} per device{limit}"
    )
    if isinstance(data, FunctionCallingDataModule):
        yield f"memory:     {_expected_memory(trainer, module, data, plan)}"
    yield f"run:        {folder}"


def _num_steps(count: float) -> str:
    return f"{count:,.0f} optimizer step{'s' * (count != 1)}"


def trainable_line(trained: int, total: int) -> str:
    """The number of trained parameters, in the words of PEFT."""
    return f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}"


def exact_match(turns: Sequence[EvaluatedTurn]) -> float:
    """Fraction of turns whose calls are an exact match."""
    return sum(turn.exact_match for turn in turns) / len(turns)


def _data_lines(data: FunctionCallingDataModule) -> Iterator[str]:
    for split, prepared in data.prepared.items():
        if split != "test":
            report = prepared.report
            rows = report.lines(split)[0].partition(": ")[2]
            yield f"{split}:".ljust(12) + f"{rows}; skipped {len(report.skipped):,}, too long {len(report.too_long):,}"
    if data.streaming:
        yield "train:      streamed"


def _epoch_line(sampler: MicroBatchSampler, plan: list[MicroBatch], batches_per_rank: int, ranks: int) -> str:
    kind = "packs" if sampler.capacity else "rows"
    per_device = f", {batches_per_rank:,} on each of {ranks} devices" if ranks > 1 else ""
    return (
        f"per epoch:  {sum(map(len, plan)):,} {kind}, {len(plan):,} micro-batches{per_device}; "
        f"{sum(sampler.lengths):,} tokens"
    )


def _expected_memory(trainer: Trainer, module: Any, data: FunctionCallingDataModule, plan: list[MicroBatch]) -> str:
    device = trainer.strategy.root_device
    tokens, attended = data.batch_size * data.max_length, data.max_length
    supervised = min(module.head_chunk, tokens)
    if plan:
        documents = data.prepared["train"].documents
        lengths, num_supervised = token_counts(documents), supervised_counts(documents)
        if not data.packing:
            tokens, attended = data.batch_size * max(lengths), max(lengths)
        elif attention_implementation(module.model.config) == BY_DOCUMENT:
            attended = sum(length * length for length in lengths) // sum(lengths)
        most = max(sum(num_supervised[document] for row in batch for document in row) for batch in plan)
        supervised = min(module.head_chunk, most)
    half = str(trainer.precision).startswith(("bf16", "16"))
    checkpointing = is_checkpointing(module.model)
    added = estimate_training_bytes(module.model, tokens, attended, supervised, checkpointing, half, device)
    in_use = memory_in_use(device)
    where = "per GPU" if device.type == "cuda" else "in this process"
    return (
        f"about {(in_use + added) / 1e9:.1f} GB peak expected {where}: {in_use / 1e9:.1f} GB in use now + "
        f"{added / 1e9:.1f} GB for gradients, optimizer, activations and logits"
    )


def _best_and_last(trainer: Trainer) -> list[str]:
    """The best and the last value of the metric that checkpoints are selected by."""
    checkpoints = monitoring_checkpoint(trainer)
    name = checkpoints.monitor if checkpoints else "val/exact_match"
    score = checkpoints.best_model_score if checkpoints else None
    last = trainer.callback_metrics.get(name)
    lines = [f"best:    {name} {float(score):.3f}, {checkpoints.best_model_path}"] if score is not None else []
    return lines + ([f"last:    {name} {float(last):.3f}"] if last is not None else [])


def _next_commands(trainer: Trainer, run: Path) -> list[str]:
    program = "python main.py" if sys.argv[0].endswith(".py") else "fc-lightning"
    best = getattr(monitoring_checkpoint(trainer), "best_model_path", "")
    if not (saved := [best] if best else newest_first(run)):
        return []
    arguments = f"--config {shlex.quote(str(run / 'config.yaml'))} --ckpt_path {shlex.quote(str(saved[0]))}"
    return [f"next:    {program} export {arguments} --output exported", f"         {program} chat {arguments}"]


def _report(trainer: Trainer, run: Path) -> list[str]:
    """The path of the report, which is written after the other callbacks have finished."""
    reports = [callback for callback in trainer.callbacks if isinstance(callback, EvaluationReport)]
    return [f"report:  {run / callback.filename}.html" for callback in reports[:1]]


def _results_table(columns: Mapping[str, Sequence[EvaluatedTurn]]) -> Table:
    """Exact match by category. The last column decides which categories there are."""
    *_, last = columns.values()
    table = Table("category", "turns", *columns, title="exact match")
    for category in [*sorted({turn.category for turn in last if turn.category}), None]:
        groups = [[turn for turn in turns if category in (None, turn.category)] for turns in columns.values()]
        shown = [f"{exact_match(turns):.3f}" if turns else "–" for turns in groups]
        table.add_row("all" if category is None else category, str(len(groups[-1])), *shown)
    return table


def _example(before: Sequence[EvaluatedTurn], after: Sequence[EvaluatedTurn]) -> list[str]:
    """A question with the generated turn before and after training: if possible, one that training has corrected."""
    earlier = {(turn.id, turn.turn, turn.sample): turn for turn in before}
    pairs = [(earlier.get((turn.id, turn.turn, turn.sample)), turn) for turn in after]
    corrected = [pair for pair in pairs if pair[0] and not pair[0].exact_match and pair[1].exact_match]
    calling = [pair for pair in corrected if pair[1].expected]
    correct = [pair for pair in pairs if pair[1].exact_match]
    old, new = next(iter([*calling, *corrected, *correct, *pairs]))
    lines = [f"question: {_one_line(question_of(new.prompt))}"]
    lines += [f"  before: {_one_line(old.text)}"] if old else []
    lines += [f"  after:  {_one_line(new.text)}"]
    if not new.exact_match:
        calls = ", ".join(f"{call.name}({dump_json(call.arguments)})" for call in new.expected)
        lines.append(f"  expected: {_one_line(calls or 'an answer without a call')}")
    return lines


def _one_line(text: str, limit: int = 300) -> str:
    text = " ".join("".join(char for char in text if char.isprintable() or char.isspace()).split())
    return shorten(text, limit)
