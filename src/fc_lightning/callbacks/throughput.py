"""Throughput: speed and memory of a run."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.throughput import get_available_flops

from fc_lightning.data.collator import Batch
from fc_lightning.models.flops import TrainingCost


class Throughput(Callback):
    """Logs speed and memory over the optimizer steps since they were last logged (``trainer.log_every_n_steps``).

    The device is synchronized only when Lightning logs its metrics anyway, never once per batch.

    Logged for all ranks together: ``train/tokens_per_second`` (without padding),
    ``train/supervised_tokens_per_second``, and ``train/padding`` (the fraction of positions that are padding).

    Logged for the first rank: ``train/data_seconds`` and ``train/step_seconds`` (averages per optimizer step),
    ``val/seconds`` (per evaluation), and ``train/peak_memory_gb`` (of the GPU since the run began, or of the process).

    If the peak of the device is known, ``train/mfu`` is also logged: the FLOPs that training needs, see
    :class:`fc_lightning.models.flops.TrainingCost`, divided by the devices' peak bf16 throughput. It follows appendix B
    of the PaLM paper, except that frozen weights need no gradients and unsupervised positions no logits.

    Args:
        peak_tflops: Peak of one device in dense bf16, in 10¹² FLOP/s; null takes it from Lightning's table of devices.
    """

    def __init__(self, peak_tflops: float | None = None):
        if peak_tflops is not None and not peak_tflops > 0:
            raise ValueError(f"peak_tflops must be greater than 0, not {peak_tflops}")
        self.peak_flops = peak_tflops and peak_tflops * 1e12
        self._evaluation_started = 0.0
        self._reset(time.perf_counter())

    def _reset(self, now: float) -> None:
        self._window_started = self._batch_ended = now
        self._tokens = self._supervised = self._positions = self._steps = 0
        self._flops = self._data_seconds = self._paused = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.peak_flops is None and pl_module.device.type == "cuda":
            self.peak_flops = get_available_flops(pl_module.device, torch.bfloat16)
        if self.peak_flops:
            self._cost = TrainingCost.of_model(pl_module.model)
        self._reset(time.perf_counter())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Count tokens; the counts are plain numbers, so this does not synchronize the device."""
        self._data_seconds += time.perf_counter() - self._batch_ended
        self._tokens += batch["num_tokens"]
        self._supervised += batch["num_supervised"]
        self._positions += batch["input_ids"].numel()
        if self.peak_flops:
            self._flops += self._cost.flops(batch)

    def on_train_batch_end(self, *_: Any) -> None:
        self._batch_ended = time.perf_counter()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self._steps += 1
        interval = trainer.log_every_n_steps  # 0 with `barebones`
        if not interval or (trainer.global_step + 1) % interval:
            return
        counts = torch.tensor([self._tokens, self._supervised, self._positions, self._flops], device=pl_module.device)
        tokens, supervised, positions, flops = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        now = time.perf_counter()  # after the synchronization: the device has finished its work
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
        self._evaluation_started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resume the clock of training, and log the time of the evaluation."""
        now = time.perf_counter()
        self._paused += now - self._evaluation_started
        self._batch_ended = now
        if trainer.logger and not trainer.sanity_checking:
            trainer.logger.log_metrics({"val/seconds": now - self._evaluation_started}, step=trainer.global_step)


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of tensors on a GPU, or the resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
