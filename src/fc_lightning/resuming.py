"""From ``--ckpt_path last`` to the run that goes on, in its own folder."""

from __future__ import annotations

import warnings
from pathlib import Path

from lightning import Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from fc_lightning.callbacks import Resumable
from fc_lightning.checkpoints import WholeCheckpointIO, last_checkpoint, read_checkpoint


def make_resumable(trainer: Trainer) -> None:
    """Have a trainer write checkpoints that survive, and that a run can go on from without a difference."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()
    if not any(isinstance(callback, Resumable) for callback in trainer.callbacks):
        trainer.callbacks.insert(0, Resumable())  # before those that save


def checkpoint_to_go_on_from(trainer: Trainer, ckpt_path: str | None) -> str | None:
    """The checkpoint file that is meant, None to start afresh.

    For ``last`` that is the newest whole one of the newest run of this configuration, and the trainer's run goes on in
    that run's folder; if there is none yet, training starts from the beginning.

    Raises:
        CheckpointError: If a file is named and it is damaged or not there.
    """
    if ckpt_path is None or ckpt_path in ("best", "hpc") or ":" in ckpt_path:
        return ckpt_path
    if ckpt_path != "last":
        read_checkpoint(Path(ckpt_path), "meta")
        return ckpt_path
    root = _root(trainer)
    given = [callback.dirpath for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    found = last_checkpoint([root, *(Path(folder) for folder in given if folder)])
    if found is None:
        rank_zero_info(f"no checkpoint in {root} yet: the run starts from the beginning")
        return None
    rank_zero_info(f"going on from {found}")
    _go_on_in_folder(trainer, root, found)
    return str(found)


def _root(trainer: Trainer) -> Path:
    """Where the checkpoints of this configuration's runs lie."""
    logger = trainer.logger
    if logger is None:
        return Path(trainer.default_root_dir) / "checkpoints"
    if getattr(logger, "_version", None) is not None and hasattr(logger, "log_dir"):
        return Path(logger.log_dir)
    root = getattr(logger, "root_dir", None)
    return Path(root) if root else Path(logger.save_dir or trainer.default_root_dir) / str(logger.name)


def _go_on_in_folder(trainer: Trainer, root: Path, checkpoint: Path) -> None:
    for logger in trainer.loggers:
        if hasattr(logger, "root_dir") and getattr(logger, "_version", "") is None and checkpoint.is_relative_to(root):
            name = checkpoint.relative_to(root).parts[0]
            number = name.removeprefix("version_")
            logger._version = int(number) if number.isdigit() else name
    # What they say would be deleted is kept.
    warnings.filterwarnings("ignore", r".*exists and is not empty.*")
    for callback in trainer.callbacks:
        if isinstance(callback, Resumable):
            callback.go_on_in(trainer.logger, trainer.is_global_zero)
