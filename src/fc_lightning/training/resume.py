"""The state that an exact resume needs: Lightning's loop counters, the random number generators, the logged metrics.

A checkpoint describes the end of an optimizer step, even if it was written within the next one, because the gradients
that have been accumulated since are in no checkpoint. The position in the data is in `data/training_order.py`.
"""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger

from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.training.lightning_internals import metrics_to_log, set_saved_logged_steps

METRICS_FILE = "metrics.csv"
_COUNTERS = ("ready", "started", "processed", "completed")


class LoopPosition(NamedTuple):
    """Where Lightning's fit loop is.

    Attributes:
        num_epochs: Completed epochs.
        in_epoch: Whether another epoch has begun.
        epoch_batches: Micro-batches of the current epoch.
        total_batches: Micro-batches of all epochs.
        is_last_batch: Whether the last of them ended the epoch.
    """

    num_epochs: int
    in_epoch: bool
    epoch_batches: int
    total_batches: int
    is_last_batch: bool


@dataclass
class TrainingPosition:
    """Where training is at the end of an optimizer step, with the data position and the generators of this rank."""

    step: int
    data: dict[str, Any]
    loops: LoopPosition
    rng: dict[str, Any]


def current_position(trainer: Trainer) -> TrainingPosition:
    """Where training is now."""
    data = trainer.datamodule.position() if isinstance(trainer.datamodule, FunctionCallingDataModule) else {}
    return TrainingPosition(
        trainer.global_step, data, loop_position(trainer), get_rng_states(trainer.lightning_module.device)
    )


def loop_position(trainer: Trainer) -> LoopPosition:
    """Where the fit loop is now."""
    epoch = trainer.fit_loop.epoch_progress.current
    batches = trainer.fit_loop.epoch_loop.batch_progress
    return LoopPosition(
        num_epochs=epoch.processed,
        in_epoch=epoch.started > epoch.processed,
        epoch_batches=batches.current.ready,
        total_batches=batches.total.ready,
        is_last_batch=batches.is_last_batch,
    )


def rewind(fit_loop: dict[str, Any], step: int, loops: LoopPosition, validated: bool) -> None:
    """Set the saved state of Lightning's loops to the end of an optimizer step.

    Lightning decides what to do next by comparing its counters. Equal counters in the epoch loop mean that everything
    is done for this batch, validation included; a validation that has started but not completed runs from its start.
    ``validated`` says whether the validation that is due at that position, if any, has completed.
    """
    started_epochs = loops.num_epochs + loops.in_epoch
    for counts in fit_loop["epoch_progress"].values():
        counts |= {"ready": started_epochs, "started": started_epochs}
        counts |= {"processed": loops.num_epochs, "completed": loops.num_epochs}
    progress = fit_loop["epoch_loop.batch_progress"]
    progress["current"] |= dict.fromkeys(_COUNTERS, loops.epoch_batches if loops.in_epoch else 0)
    progress["total"] |= dict.fromkeys(_COUNTERS, loops.total_batches)
    progress["is_last_batch"] = loops.in_epoch and loops.is_last_batch
    validation = fit_loop["epoch_loop.val_loop.batch_progress"]
    for counts in (validation["current"], validation["total"]):
        counts |= dict.fromkeys(_COUNTERS, 0)
    if loops.in_epoch and not validated:
        validation["total"] |= {"ready": 1, "started": 1}
    validation["is_last_batch"] = False
    set_saved_logged_steps(fit_loop, step - 1 if loops.in_epoch else step)


def rescale_batches(progress: dict[str, Any], saved_ranks: int, ranks: int) -> None:
    """Convert the micro-batch counters of a rank to another number of ranks, in place."""
    for counts in (progress["current"], progress["total"]):
        counts.update({name: -(-count * saved_ranks // ranks) for name, count in counts.items()})


def pending_metrics(trainer: Trainer, step: int) -> list[tuple[dict[str, float], int]]:
    """The row of metrics that Lightning logs only after the callbacks of a batch's end have run."""
    batch = trainer.fit_loop.epoch_loop.batch_progress.current
    at_batch_end = trainer.training and batch.processed == batch.completed + 1 and trainer.global_step == step
    row = metrics_to_log(trainer) if at_batch_end else None
    return [] if row is None else [({**row, "epoch": trainer.current_epoch}, step - 1)]


def num_metric_rows(trainer: Trainer, before_step: int | None = None) -> int:
    """Rows of ``metrics.csv`` on disk, optionally only those before a step."""
    if not trainer.is_global_zero or not isinstance(trainer.logger, CSVLogger):
        return 0
    trainer.logger.save()
    file = Path(trainer.logger.log_dir) / METRICS_FILE
    if not file.exists():
        return 0
    with file.open(encoding="utf-8") as lines:
        steps = [int(row["step"]) for row in csv.DictReader(lines)]
    while before_step is not None and steps and steps[-1] >= before_step:
        steps.pop()
    return len(steps)


def reopen_metrics(logger: CSVLogger) -> None:
    """Make a logger append to a run's ``metrics.csv``; Lightning would delete the file."""
    file = Path(logger.log_dir) / METRICS_FILE
    aside = file.with_name(f"{METRICS_FILE}.kept")
    if file.exists():
        file.replace(aside)
    experiment = logger.experiment
    if aside.exists():
        with aside.open(encoding="utf-8") as lines:
            experiment.metrics_keys = next(csv.reader(lines), [])
        aside.replace(file)


def truncate_metrics(file: Path, num_rows: int) -> None:
    """Remove the rows that were logged after a checkpoint: the resumed run logs them again."""
    if file.exists():
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        partial = file.with_name(f"{METRICS_FILE}.partial")
        partial.write_text("".join(lines[: num_rows + 1]), encoding="utf-8")
        partial.replace(file)


def get_rng_states(device: torch.device) -> dict[str, Any]:
    """The states of all random number generators, in plain types that load without unpickling code."""
    numbers: Any = numpy.random.get_state()
    name, keys, *rest = numbers
    states: dict[str, Any] = {"python": random.getstate()}
    states["numpy"] = [name, torch.from_numpy(keys.astype("int64")), *rest]
    states["torch"] = torch.get_rng_state()
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_rng_states(states: dict[str, Any], device: torch.device) -> None:
    """Restore what :func:`get_rng_states` returned."""
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    numpy.random.set_state((name, keys.numpy().astype("uint32"), *rest))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
