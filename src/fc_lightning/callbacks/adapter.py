"""SaveAdapter: a PEFT folder next to each checkpoint, and one in the run's folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import CheckpointIO
from peft import PeftModel
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG

from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.models.fsdp import trained_weights
from fc_lightning.models.saving import write_model
from fc_lightning.training.checkpoint_io import CheckpointError, check_finite, wrap_write_errors
from fc_lightning.training.run_folders import check_name
from fc_lightning.utils.atomic_files import atomic_folder
from fc_lightning.utils.pretrained import commit_of


class SaveAdapter(Callback):
    """Writes the adapter with tokenizer and templates, so that PEFT can load it without this package.

    The folder ``NAME.adapter`` next to each checkpoint ``NAME.ckpt`` has the same weights, and is removed together with
    it. When training ends, the final adapter is also written to the run's folder.

    Args:
        folder: Name of the folder in the run's folder.
    """

    def __init__(self, folder: str = "adapter"):
        self.folder = check_name(folder, "folder")
        self._is_unwritten = False  # the folder of the final adapter

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        strategy = trainer.strategy
        self._is_unwritten = stage == "fit"
        if stage == "fit" and not isinstance(strategy.checkpoint_io, AdapterCheckpointIO):
            strategy.checkpoint_io = AdapterCheckpointIO(strategy.checkpoint_io, trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_unwritten = False
        run = trainer.log_dir  # a collective
        if trainer.fast_dev_run or not isinstance(pl_module.model, PeftModel):
            return
        weights = trained_weights(pl_module.model)  # a collective if the model is sharded
        if trainer.is_global_zero:
            save_adapter(trainer, Path(run or ".") / self.folder, weights)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the final adapter of a finished run that is resumed: it may have been killed before it could."""
        if self._is_unwritten and pl_module.device_mesh is None:
            self.on_train_end(trainer, pl_module)


class AdapterCheckpointIO(CheckpointIO):
    """Writes and removes adapters together with their checkpoints."""

    def __init__(self, checkpoint_io: CheckpointIO, trainer: Trainer):
        self.checkpoint_io = checkpoint_io
        self.trainer = trainer

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, and the adapter from its weights. Lightning calls it on one rank only."""
        self.checkpoint_io.save_checkpoint(checkpoint, path, storage_options)
        weights = checkpoint.get("state_dict", {})
        if isinstance(self.trainer.lightning_module.model, PeftModel) and weights:
            weights = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
            save_adapter(self.trainer, adapter_folder(path), weights)

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(*args, **kwargs)

    def remove_checkpoint(self, path: Any) -> None:
        self.checkpoint_io.remove_checkpoint(path)
        shutil.rmtree(adapter_folder(path), ignore_errors=True)

    def teardown(self) -> None:
        self.checkpoint_io.teardown()


def adapter_folder(checkpoint: Any) -> Path:
    """The folder of a checkpoint's adapter."""
    return Path(checkpoint).with_suffix(".adapter")


def save_adapter(trainer: Trainer, folder: Path, weights: dict[str, Any]) -> None:
    """Write an adapter folder, or replace it.

    Raises:
        CheckpointError: If the folder contains something else, the weights are not finite, or it cannot be written.
    """
    if folder.exists() and not (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(f"{folder}: already exists and is not an adapter; choose another `folder` (SaveAdapter)")
    check_finite(weights, folder)
    module = trainer.lightning_module
    with wrap_write_errors(folder), atomic_folder(folder, replace=True) as partial:
        write_model(
            module.model,
            getattr(trainer.datamodule, "template", None) or ChatTemplate(module.tokenizer),
            partial,
            merge=False,
            revision=commit_of(module.base, module.revision),
            weights=weights,
        )
