"""Throughput: where a run's seconds and bytes go."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.throughput import get_available_flops

from fc_lightning.data.collator import Batch
from fc_lightning.models.flops import TrainingCost


class Throughput(Callback):
    """Logs speed and memory, each over the optimizer steps since the last logged one (``trainer.log_every_n_steps``).

    The device is asked once a window, when Lightning writes its metrics anyway, never once a batch.

    Logged, of all ranks together: ``train/tokens_per_second`` (padding does not count),
    ``train/supervised_tokens_per_second``, ``train/padding`` (share of the positions that are padding); of the first
    rank: ``train/data_seconds`` and ``train/step_seconds`` (of an optimizer step, on average), ``val/seconds`` (of an
    evaluation), ``train/peak_memory_gb`` (of the device since the run began; of the process where there is no GPU), and
    where the device's peak is known ``train/mfu``: the operations that the training needs, see
    :class:`fc_lightning.models.flops.TrainingCost`, over those that the devices could have done in bf16 (PaLM, appendix
    B, but that frozen weights need no gradients and unsupervised positions no logits).

    Args:
        peak_tflops: Of one device, dense bf16, in 10¹² operations a second; null for Lightning's table of devices.
    """

    def __init__(self, peak_tflops: float | None = None):
        self.peak_flops = peak_tflops and peak_tflops * 1e12
        self._evaluation_started = 0.0
        self._reset(time.perf_counter())

    def _reset(self, now: float) -> None:
        self._window_started = self._batch_ended = now
        self._tokens = self._supervised = self._positions = self._steps = 0
        self._flops = self._data_seconds = self._paused = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        if self.peak_flops is None and pl_module.device.type == "cuda":
            self.peak_flops = get_available_flops(pl_module.device, torch.bfloat16)
        if self.peak_flops:
            self._cost = TrainingCost.of_model(pl_module.model)
        self._reset(time.perf_counter())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Count what the batch holds; its counts are plain numbers."""
        self._data_seconds += time.perf_counter() - self._batch_ended
        self._tokens += batch["num_tokens"]
        self._supervised += batch["num_supervised"]
        self._positions += batch["input_ids"].numel()
        if self.peak_flops:
            self._flops += self._cost.flops(batch)

    def on_train_batch_end(self, *_: Any) -> None:
        """Waiting for data starts here."""
        self._batch_ended = time.perf_counter()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Close the window where Lightning logs this step."""
        self._steps += 1
        if (trainer.global_step + 1) % trainer.log_every_n_steps:
            return
        counts = torch.tensor([self._tokens, self._supervised, self._positions, self._flops], device=pl_module.device)
        tokens, supervised, positions, flops = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        now = time.perf_counter()  # after the device has been asked: it has done all that it was given
        seconds = now - self._window_started - self._paused
        values = {
            "train/tokens_per_second": tokens / seconds,
            "train/supervised_tokens_per_second": supervised / seconds,
            "train/padding": 1 - tokens / positions,
            "train/data_seconds": self._data_seconds / self._steps,
            "train/step_seconds": seconds / self._steps,
            "train/peak_memory_gb": peak_memory(pl_module.device) / 1e9,
        }
        if self.peak_flops:
            values["train/mfu"] = flops / seconds / (self.peak_flops * trainer.world_size)
        pl_module.log_dict(values)
        self._reset(now)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of the training."""
        self._evaluation_started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on, and log how long it took."""
        now = time.perf_counter()
        self._paused += now - self._evaluation_started
        self._batch_ended = now
        if trainer.logger and not trainer.sanity_checking:
            trainer.logger.log_metrics({"val/seconds": now - self._evaluation_started}, step=trainer.global_step)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU, or the most that this process held resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
