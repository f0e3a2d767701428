"""SaveAdapter: a PEFT folder beside each checkpoint, and one in the run's folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import CheckpointIO
from peft import PeftModel

from fc_lightning.models.fsdp import trained_weights
from fc_lightning.models.saving import write_model
from fc_lightning.training.checkpoint_io import writing
from fc_lightning.utils.atomic_files import atomic_folder
from fc_lightning.utils.pretrained import commit_of


class SaveAdapter(Callback):
    """Writes the adapter with tokenizer and templates, so that PEFT can load it without this package.

    Beside each checkpoint ``NAME.ckpt`` lies a folder ``NAME.adapter`` with the same weights; it goes when the
    checkpoint goes. When training ends, the adapter as it is then is written into the run's folder as well.

    Args:
        folder: Name of the folder in the run's folder.
    """

    def __init__(self, folder: str = "adapter"):
        self.folder = folder
        self._fits = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See to it that checkpoints are written with their adapters."""
        strategy = trainer.strategy
        self._fits = stage == "fit"
        if stage == "fit" and not isinstance(strategy.checkpoint_io, AdapterCheckpointIO):
            strategy.checkpoint_io = AdapterCheckpointIO(strategy.checkpoint_io, trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the one in the run's folder."""
        self._fits = False
        run = trainer.log_dir  # asks all ranks
        if not isinstance(pl_module.model, PeftModel):
            return
        weights = trained_weights(pl_module.model)  # asks all ranks, where the model is sharded
        if trainer.is_global_zero:
            save_adapter(trainer, Path(run or ".") / self.folder, weights)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it too where a finished run was to go on: it may have been killed before it could."""
        if self._fits and pl_module.device_mesh is None:
            self.on_train_end(trainer, pl_module)


class AdapterCheckpointIO(CheckpointIO):
    """Writes and removes checkpoints as another does, and the adapters beside them.

    Args:
        checkpoint_io: The other.
        trainer: Has the model.
    """

    def __init__(self, checkpoint_io: CheckpointIO, trainer: Trainer):
        self.checkpoint_io, self.trainer = checkpoint_io, trainer

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, and from its weights the adapter. Lightning calls it on one rank only."""
        self.checkpoint_io.save_checkpoint(checkpoint, path, storage_options)
        weights = checkpoint.get("state_dict", {})
        if isinstance(self.trainer.lightning_module.model, PeftModel) and weights:
            weights = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
            save_adapter(self.trainer, adapter_folder(path), weights)

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint."""
        return self.checkpoint_io.load_checkpoint(*args, **kwargs)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove both."""
        self.checkpoint_io.remove_checkpoint(path)
        shutil.rmtree(adapter_folder(path), ignore_errors=True)

    def teardown(self) -> None:
        """Let the other finish."""
        self.checkpoint_io.teardown()


def adapter_folder(checkpoint: Any) -> Path:
    """Where the adapter of a checkpoint lies."""
    return Path(checkpoint).with_suffix(".adapter")


def save_adapter(trainer: Trainer, folder: Path, weights: dict[str, Any]) -> None:
    """Write an adapter folder, or write it anew."""
    module = trainer.lightning_module
    with writing(folder), atomic_folder(folder, replace=True) as partial:
        write_model(
            module.model,
            trainer.datamodule.template,
            partial,
            merge=False,
            revision=commit_of(module.base, module.revision),
            weights=weights,
        )
