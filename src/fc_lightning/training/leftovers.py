"""Removes obsolete checkpoints that a process was killed before it could delete."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from fc_lightning.training.checkpoint_io import peek


def remove_surplus(trainer: Trainer, resumed_from: str | None = None) -> None:
    """Remove the checkpoints in this run's folders that a callback has written and does not keep, and their adapters.

    Only those count that a callback names in its own state in some checkpoint there: other files are left alone, and
    so is ``resumed_from``. The trainer has restored the state of its callbacks.
    """
    if not trainer.is_global_zero:
        return
    savers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    kept = {str(resumed_from), *(path for saver in savers for path in _named(saver.state_dict()))}
    surplus = set()
    for folder in {Path(saver.dirpath) for saver in savers if saver.dirpath}:
        for adapter in folder.glob("*.adapter"):
            if not adapter.with_suffix(".ckpt").exists():
                shutil.rmtree(adapter)
        for file in folder.glob("*.ckpt"):
            states = peek(file).get("callbacks", {})
            surplus |= {
                path
                for saver in savers
                if saver.save_top_k > 0  # the others keep all
                for path in _named(states.get(saver.state_key, {}))
            }
    for path in sorted(surplus - kept):
        if Path(path).is_file():
            trainer.strategy.remove_checkpoint(path)


def _named(state: dict[str, Any]) -> set[str]:
    """The files that the state of a checkpoint callback names."""
    names = [*state.get("best_k_models", {}), state.get("best_model_path"), state.get("last_model_path")]
    return {str(name) for name in names if name}
