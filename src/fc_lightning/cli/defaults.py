"""Defaults that every recipe shares: logger, callbacks and checkpoints.

``trainer.callbacks`` in a file replaces the list, ``callbacks+`` appends to it, and ``callbacks: []`` removes all of
them. ``--print_config`` shows them. Callbacks that every run has (``Failures``, ``Preemption``, ``Resumable``,
``SaveConfig``) are added by `cli/lightning_cli.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

RUNS = "runs"
_UNNAMED = "default"  # name of runs that are started without a configuration file

CALLBACKS: list[dict[str, Any]] = [
    {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"monitor": "val/exact_match", "mode": "max"},
    },
    {"class_path": "fc_lightning.callbacks.LastCheckpoint", "init_args": {"every_n_train_steps": 50}},
    {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"},
    {"class_path": "fc_lightning.callbacks.TensorBoard"},
    {"class_path": "fc_lightning.callbacks.Throughput"},
    {"class_path": "fc_lightning.callbacks.ProgressBar"},
    {"class_path": "fc_lightning.callbacks.PredictionWriter"},
    {"class_path": "fc_lightning.callbacks.EvaluationReport"},
    {"class_path": "fc_lightning.callbacks.SaveAdapter"},
    {"class_path": "fc_lightning.callbacks.RunSummary"},
]


def trainer_defaults(config_files: Sequence[str]) -> dict[str, Any]:
    """Defaults of keys under ``trainer``.

    Args:
        config_files: The configuration files of the command line; the first one is the recipe, and names the runs.
    """
    name = Path(config_files[0]).stem if config_files else _UNNAMED
    return {
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # the data module shards the data itself
        "enable_model_summary": False,  # RunSummary describes the model
        "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": RUNS, "name": name}},
        "callbacks": CALLBACKS,
    }


def drop_impossible_defaults(trainer: Any) -> None:
    """Drop those of the default callbacks that contradict other settings of the trainer.

    Lightning rejects a checkpoint callback with ``enable_checkpointing: false``, a LearningRateMonitor without a
    logger, a bar with ``enable_progress_bar: false``, and all of them with ``barebones``. For callbacks that the user
    has named, the error stays.

    Args:
        trainer: The configuration under ``trainer``, changed in place.
    """
    conflicts = {
        "Checkpoint": trainer.enable_checkpointing is False,
        "LearningRateMonitor": trainer.logger is False,
        "ProgressBar": trainer.enable_progress_bar is False,
        "TensorBoard": trainer.logger is False,
    }
    dropped = [
        callback
        for callback in CALLBACKS
        for name, is_conflict in conflicts.items()
        if callback["class_path"].endswith(name) and (is_conflict or trainer.barebones)
    ]
    if trainer.barebones and getattr(trainer.logger, "class_path", "").endswith("CSVLogger"):
        trainer.logger = False
    if isinstance(trainer.callbacks, list):
        trainer.callbacks = [one for one in trainer.callbacks if not any(_is(one, default) for default in dropped)]


def _is(callback: Any, default: dict[str, Any]) -> bool:
    if callback.class_path != default["class_path"]:
        return False
    return all(callback.init_args.get(name) == value for name, value in default.get("init_args", {}).items())
