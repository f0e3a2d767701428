"""Failures: records errors immediately, and names the batch that did not fit into memory."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from fc_lightning.data.dataloaders import is_prompt_batch
from fc_lightning.training.distributed import record_error

_SETTINGS_TO_LOWER = {
    "training": "`data.max_length`, `data.batch_size` or `model.head_chunk`, or set "
    "`model.gradient_checkpointing: true`",
    "loss": "`data.max_length`, `data.batch_size` or `model.head_chunk`",
    "generation": "`data.generation_batch_tokens`, `data.generation_batch_size` or `max_new_tokens` in "
    "`model.generation`",
}


class Failures(Callback):
    """Records an error before other callbacks react to it; see :func:`fc_lightning.training.distributed.record_error`.

    If a device runs out of memory, the error names the batch and the settings to lower. The command line always adds
    this callback.
    """

    def __init__(self) -> None:
        self._batch: Any = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any) -> None:
        self._batch = batch

    def on_train_batch_end(self, *_: Any) -> None:
        self._batch = None

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = on_train_batch_start
    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = on_train_batch_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, torch.OutOfMemoryError) and self._batch is not None:
            exception.add_note(describe_batch(self._batch, trainer.training))
        record_error(exception)


def describe_batch(batch: Any, training: bool) -> str:
    """Describe a training or prompt batch that did not fit into memory, and the settings to lower."""
    if is_prompt_batch(batch):
        lengths = [len(ids) for ids in batch["input_ids"]]
        num_prompts, longest = min(len(lengths), batch["limits"][1]), max(lengths, default=0)
        what = f"while generating from up to {num_prompts} prompts × {longest:,} tokens"
        what += f" (of {lengths} tokens: {batch['id']})"
        advice = _SETTINGS_TO_LOWER["generation"]
    else:
        rows, length = batch["input_ids"].shape
        all_lengths = [[end - start for at, start, end in batch["documents"] if at == row] for row in range(rows)]
        documents = [row[: len(ids)] for row, ids in zip(all_lengths, batch["ids"], strict=True)]  # without padding
        what = f"on a batch of {rows} rows × {length:,} tokens, {batch['num_supervised']:,} of them supervised"
        what += f" (conversations of {documents} tokens: {batch['ids']})"
        advice = _SETTINGS_TO_LOWER["training" if training else "loss"]
    return f"Out of memory {what}. Lower {advice}."
