"""ProgressBar: Lightning's, with the numbers that were logged anyway."""

from __future__ import annotations

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

_SHOWN = {"train/loss": ".3f", "train/tokens_per_second": ",.0f", "val/loss": ".3f", "val/exact_match": ".3f"}


class ProgressBar(TQDMProgressBar):
    """Shows loss, speed and exact match as they were logged last; ``prog_bar=True`` would ask the device each batch."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, int | str | float]:
        """What stands behind the bar."""
        known = trainer.callback_metrics
        shown = {name: f"{known[name].item():{form}}" for name, form in _SHOWN.items() if name in known}
        return {**super().get_metrics(trainer, pl_module), **shown}
