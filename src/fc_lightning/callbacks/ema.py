"""EMA: an exponential moving average of the trained weights, evaluated and saved in their place."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from fc_lightning.training.optimization import SettingsError

_KEY = "ema"


class EMA(Callback):
    """Averages the trained weights over the optimizer steps: those of the adapter, without a copy of the base.

    The average is what is evaluated, saved and exported. Checkpoints also hold the weights that training continues
    with. At the beginning the average follows more quickly: after *n* steps the decay is at most (1 + n) / (10 + n).

    Args:
        decay: Fraction of the average that each optimizer step keeps.
    """

    def __init__(self, decay: float = 0.999):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be at least 0 and less than 1, not {decay}")
        self.decay = decay
        self.num_updates = 0
        self._step = 0
        self._average: dict[str, Tensor] = {}
        self._resumed: dict[str, Tensor] = {}  # the average in the checkpoint that the run resumes from
        self._is_swapped = False  # whether the model has the average, and `_average` the training weights

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Move this callback before those that save."""
        trainer.callbacks.remove(self)
        trainer.callbacks.insert(0, self)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the weights of the model, or from the average of a checkpoint.

        Raises:
            SettingsError: If the weights are sharded.
        """
        if pl_module.device_mesh is not None:
            raise SettingsError("`EMA` does not support sharded weights; remove it from `trainer.callbacks`")
        self._step = trainer.global_step
        trained = pl_module.trained_parameters()
        average = self._resumed or trained
        self._average = {name: average[name].detach().clone().to(weight) for name, weight in trained.items()}
        self._resumed = {}
        self._is_swapped = False

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        weights = list(pl_module.trained_parameters().values())
        torch._foreach_lerp_(list(self._average.values()), weights, 1.0 - decay)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._average and trainer.state.fn == "fit":
            self._swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_swapped and trainer.state.fn == "fit":
            self._swap(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap(pl_module)

    @torch.no_grad()
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the model of a finished run that is resumed, which does not train."""
        trained = pl_module.trained_parameters()
        for name, average in self._resumed.items():
            trained[name].copy_(average)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as the model, and the training weights next to it."""
        if not self._average:
            return
        model = {name: weight.detach() for name, weight in pl_module.trained_parameters().items()}
        average, training = (model, self._average) if self._is_swapped else (self._average, model)
        checkpoint["state_dict"].update(average)
        checkpoint[_KEY] = {"weights": training, "num_updates": self.num_updates}

    @torch.no_grad()
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Resume with the training weights, and with the average that the model has been loaded with."""
        if trainer.state.fn != "fit" or _KEY not in checkpoint:
            return
        self.num_updates = checkpoint[_KEY]["num_updates"]
        for name, weight in pl_module.trained_parameters().items():
            self._resumed[name] = weight.detach().clone()
            weight.copy_(checkpoint[_KEY]["weights"][name])

    @torch.no_grad()
    def _swap(self, module: LightningModule) -> None:
        self._is_swapped = not self._is_swapped
        for name, weight in module.trained_parameters().items():
            other = self._average[name]
            self._average[name] = weight.detach().clone()
            weight.copy_(other)
