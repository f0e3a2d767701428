"""Where the runs of a configuration and their checkpoints are."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from fc_lightning.training.lightning_internals import fixed_version


def check_name(name: str, key: str) -> str:
    """Check that a setting names something inside of a run's folder, and return it; ValueError if it does not."""
    path = PurePath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or path.parts[0] == "checkpoints":
        raise ValueError(f"{key} must be a name inside the run's folder but outside `checkpoints`, not {name!r}")
    return name


def runs_root(trainer: Trainer) -> Path:
    """The folder that holds the run folders of this configuration."""
    logger = trainer.logger
    if logger is None:
        return Path(trainer.default_root_dir) / "checkpoints"
    root = getattr(logger, "root_dir", None)
    return Path(root) if root else Path(logger.save_dir or trainer.default_root_dir) / str(logger.name)


def search_root(trainer: Trainer) -> Path:
    """The folder to search for checkpoints: of the run whose version the configuration names, or else of all runs."""
    logger = trainer.logger
    if fixed_version(logger) is not None and hasattr(logger, "log_dir"):
        return Path(logger.log_dir)
    return runs_root(trainer)


def checkpoint_folders(trainer: Trainer) -> list[Path]:
    """The folders that may hold checkpoints of this configuration, those of newer runs first."""
    savers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    root = search_root(trainer)
    numbers = [run.name.removeprefix("version_") for run in root.glob("version_*")]
    runs = [root / f"version_{number}" for number in sorted(filter(str.isdigit, numbers), key=int, reverse=True)]
    return [*(Path(saver.dirpath) for saver in savers if saver.dirpath), *runs, root]


def checkpoint_folder(trainer: Trainer) -> Path:
    """The folder of this run's checkpoints. A collective: all ranks must call it."""
    run = Path(trainer.log_dir or trainer.default_root_dir)
    given = [folder for callback in trainer.checkpoint_callbacks if (folder := getattr(callback, "dirpath", None))]
    return Path(next(iter(given), run / "checkpoints"))


def monitoring_checkpoint(trainer: Trainer) -> Any:
    """The first checkpoint callback that monitors a metric, which selects ``best``; None if there is none."""
    return next((callback for callback in trainer.checkpoint_callbacks if getattr(callback, "monitor", None)), None)


def last_checkpoint_path(trainer: Trainer) -> Path:
    """Where to save the last checkpoint: next to the others, or in the run's folder. A collective."""
    path = checkpoint_folder(trainer) / "last.ckpt"
    if trainer.is_global_zero and path.is_symlink():
        path.unlink()  # with `save_last: link` it points at another checkpoint, which must not be overwritten
    for callback in trainer.checkpoint_callbacks:
        if getattr(callback, "save_last", None):
            callback.last_model_path = str(path)  # or Lightning would save `last-v1.ckpt` next to it
    return path
