"""Where the runs of a configuration and their checkpoints are."""

from __future__ import annotations

from pathlib import Path

from lightning import Trainer

from fc_lightning.training.lightning_internals import fixed_version


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


def checkpoint_folder(trainer: Trainer) -> Path:
    """The folder of this run's checkpoints. A collective: all ranks must call it."""
    run = trainer.log_dir or trainer.default_root_dir
    return Path(getattr(trainer.checkpoint_callback, "dirpath", None) or Path(run) / "checkpoints")
