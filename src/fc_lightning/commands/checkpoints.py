"""Finds the checkpoint that a user means by a path, ``best`` or ``last``, and loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import Trainer

from fc_lightning.training.checkpoint_io import CheckpointError, check_complete, last_checkpoint, read_checkpoint
from fc_lightning.training.module import FunctionCallingModule
from fc_lightning.training.run_folders import checkpoint_folders, runs_root


def find_checkpoint(trainer: Trainer, which: str) -> Path:
    """The file of a checkpoint. For ``best`` and ``last`` damaged ones are reported and skipped.

    Raises:
        CheckpointError: If there is none.
    """
    if which not in ("best", "last"):
        if not Path(which).is_file():
            raise CheckpointError(f"{which}: checkpoint not found (`--ckpt_path`)")
        return Path(which)
    # An evaluation may have a named folder of its own, without checkpoints: then the newest run's are meant.
    newest = last_checkpoint([*checkpoint_folders(trainer), runs_root(trainer)])
    if newest is None:
        raise CheckpointError(f"{runs_root(trainer)}: no checkpoint found; train first, or name one with `--ckpt_path`")
    return newest if which == "last" else _best_of_run(newest)


def load_checkpoint(module: FunctionCallingModule, checkpoint: Path) -> dict[str, Any]:
    """Load the trained weights of a checkpoint into a module; every key must fit.

    Returns:
        The content of the checkpoint.

    Raises:
        CheckpointError: If the file is not a checkpoint.
        BaseModelError: If it belongs to another model.
    """
    state = check_complete(read_checkpoint(checkpoint), checkpoint)
    module.on_load_checkpoint(state)
    module.load_state_dict(state["state_dict"], strict=False)
    return state


def load_for_inference(trainer: Trainer, module: FunctionCallingModule, ckpt_path: str | None) -> None:
    """Load the model outside of a Trainer's loop: a checkpoint, or the base model where none is given."""
    trainer.strategy.connect(module)
    module.trainer = trainer
    module.configure_model()
    if ckpt_path is not None:
        load_checkpoint(module, find_checkpoint(trainer, ckpt_path))
    module.to(trainer.strategy.root_device).eval()


def _best_of_run(newest: Path) -> Path:
    """The best checkpoint that the newest one knows of; without a monitored metric, the newest one itself."""
    states = read_checkpoint(newest).get("callbacks", {})
    savers = [state for state in states.values() if isinstance(state, dict) and "best_model_path" in state]
    # One that monitors no metric keeps the newest state, and calls it the best.
    savers = [state for state in savers if state.get("monitor") is not None] or savers
    named = [Path(path) for state in savers if (path := state["best_model_path"])]
    if not named:
        return newest
    # The folder of a run may have been moved: then the best checkpoint is next to the newest one.
    candidates = [place for path in named for place in (path, newest.parent / path.name)]
    found = next((place for place in candidates if place.is_file()), None)
    if found is None:
        raise CheckpointError(
            f"{candidates[0]}: the best checkpoint of the newest run is gone; name one with `--ckpt_path`"
        )
    return found
