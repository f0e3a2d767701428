"""LastCheckpoint: saves the newest state of a run, at a fixed interval and at its end."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from fc_lightning.training.run_folders import last_checkpoint_path


class LastCheckpoint(Checkpoint):
    """Saves the newest state as ``last.ckpt``, which bounds what a killed run loses.

    Lightning's ``ModelCheckpoint(save_last=True)`` with a ``monitor`` makes ``last.ckpt`` a copy of the *best* state.

    Args:
        every_n_train_steps: Optimizer steps between saves. The state at the end of training is always saved.
    """

    def __init__(self, every_n_train_steps: int = 50):
        if every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps must be at least 1, not {every_n_train_steps}")
        self.every_n_train_steps = every_n_train_steps
        self._saved_step = 0
        self._is_outdated = False  # whether anything has happened since it was saved

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run starts from a saved state."""
        self._saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._saved_step:
            return
        self._is_outdated = True
        if trainer.global_step % self.every_n_train_steps == 0:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that there is a new best state."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._is_outdated = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_outdated:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if not trainer.fast_dev_run:
            trainer.save_checkpoint(last_checkpoint_path(trainer))
        self._saved_step = trainer.global_step
        self._is_outdated = False
