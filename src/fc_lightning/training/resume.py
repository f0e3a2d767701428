"""From ``--ckpt_path last`` to the run that goes on, in its own folder."""

from __future__ import annotations

import warnings
from pathlib import Path

from lightning import Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from fc_lightning.callbacks import Resumable
from fc_lightning.training import slurm
from fc_lightning.training.checkpoint_io import AtomicCheckpointIO, last_checkpoint, read_checkpoint


def make_resumable(trainer: Trainer) -> None:
    """Have a trainer write checkpoints that survive, and that a run can go on from without a difference."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    if not any(isinstance(callback, Resumable) for callback in trainer.callbacks):
        trainer.callbacks.insert(0, Resumable())  # before those that save


def checkpoint_to_resume_from(trainer: Trainer, ckpt_path: str | None) -> str | None:
    """The checkpoint file that is meant, None to start afresh.

    For ``last`` that is the newest whole one of the newest run of this configuration, and the trainer's run goes on in
    that run's folder; if there is none yet, training starts from the beginning. Where SLURM has requeued the job, it is
    that of the run that the job has begun, also where none is asked for.

    Raises:
        CheckpointError: If a file is named and it is damaged or not there.
    """
    root = _root(trainer)
    begun = slurm.noted(trainer) if slurm.requeues(trainer) else None
    if begun is not None and last_checkpoint([begun]):
        return _going_on_from(trainer, root, [begun])
    if ckpt_path is None or ckpt_path in ("best", "hpc") or ":" in ckpt_path:
        return ckpt_path
    if ckpt_path != "last":
        read_checkpoint(Path(ckpt_path), "meta")
        return ckpt_path
    given = [callback.dirpath for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return _going_on_from(trainer, root, [root, *(Path(folder) for folder in given if folder)])


def _going_on_from(trainer: Trainer, root: Path, folders: list[Path]) -> str | None:
    found = last_checkpoint(folders)
    if found is None:
        rank_zero_info(f"no checkpoint in {root} yet: the run starts from the beginning")
        return None
    rank_zero_info(f"going on from {found}")
    _go_on_in_folder(trainer, root, found)
    return str(found)


def _root(trainer: Trainer) -> Path:
    """Where the checkpoints of this configuration's runs lie, or of the one that is named."""
    logger = trainer.logger
    if getattr(logger, "_version", None) is not None and hasattr(logger, "log_dir"):
        return Path(logger.log_dir)
    return slurm.runs_of(trainer)


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
