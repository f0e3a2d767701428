"""SaveAdapter: a PEFT folder in the run's folder."""

from __future__ import annotations

from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from peft import PeftModel

from fc_lightning.export import write_model
from fc_lightning.modeling import trained_weights


class SaveAdapter(Callback):
    """Writes the adapter with tokenizer and chat template when training ends, so that plain PEFT can load it.

    Args:
        folder: Name of the folder in the run's folder.
    """

    def __init__(self, folder: str = "adapter"):
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it."""
        run = trainer.log_dir  # asks all ranks
        if not isinstance(pl_module.model, PeftModel):
            return
        weights = trained_weights(pl_module.model)  # asks all ranks, where the model is sharded
        if trainer.is_global_zero:
            folder = Path(run or ".") / self.folder
            folder.mkdir(parents=True, exist_ok=True)
            write_model(pl_module.model, trainer.datamodule.template, folder, merge=False, weights=weights)
