"""Export: from a checkpoint to a folder that any server can open."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import HfApi
from huggingface_hub.utils import HfHubHTTPError, HFValidationError, validate_repo_id
from lightning import Trainer

from fc_lightning.commands.export.model_card import write_card
from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.models.loading import load_config
from fc_lightning.models.saving import write_model
from fc_lightning.training.checkpoint_io import last_checkpoint, read_checkpoint
from fc_lightning.training.module import FunctionCallingModule
from fc_lightning.utils.atomic_files import atomic_folder, wrap_os_errors
from fc_lightning.utils.errors import first_line
from fc_lightning.utils.pretrained import commit_of


class ExportError(ValueError):
    """Nothing can be exported as asked. The message says what to do."""


def export(
    trainer: Trainer,
    module: FunctionCallingModule,
    data: FunctionCallingDataModule,
    output: str,
    ckpt_path: str = "best",
    merge: bool = True,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    push_to_hub: str | None = None,
) -> Path:
    """Write the model of a checkpoint as a server opens it. The folder appears whole or not at all.

    Args:
        trainer: Knows where runs are written.
        module: Configured as it was for training.
        data: Gives the chat template.
        output: The folder to write.
        ckpt_path: A checkpoint file, or ``best`` or ``last`` of the newest run of this configuration.
        merge: Whether to merge the adapter into the base, or to write the adapter alone.
        dtype: Of the merged weights: ``auto`` is the base's own. They are merged in float32 and rounded once.
        push_to_hub: A repository on the hub, ``USER/NAME``, to upload the folder to; a new one is private.

    Raises:
        ExportError: If there is no such checkpoint, the folder exists, or it cannot be written or uploaded.
    """
    folder = Path(output)
    _check_request(folder, module, merge, push_to_hub)
    checkpoint = find_checkpoint(trainer, ckpt_path)
    trainer.strategy.connect(module)
    module.trainer = trainer
    if merge:  # an adapter goes into whole matrices, not into 4 bits
        module.weight_dtype, module.quantization = "float32", None
    state = load_checkpoint(module, checkpoint)
    base_dtype = load_config(module.base, module.revision).dtype or torch.float32
    own = base_dtype if dtype == "auto" else getattr(torch, dtype)
    with (
        wrap_os_errors(folder, error_type=ExportError, details="; nothing was left there"),
        atomic_folder(folder) as partial,
    ):
        write_model(module.model, data.template, partial, merge, own, commit_of(module.base, module.revision))
        write_card(partial, trainer, module, data, checkpoint, state, own if merge else None)
    print(f"{checkpoint} → {folder}" + (f"\nnext:    transformers serve {folder}" if merge else ""))
    if push_to_hub:
        _upload(folder, push_to_hub)
    return folder


def find_checkpoint(trainer: Trainer, which: str) -> Path:
    """The file of a checkpoint. For ``best`` and ``last`` broken ones are told and passed over.

    Raises:
        ExportError: If there is none.
    """
    if which not in ("best", "last"):
        if not Path(which).is_file():
            raise ExportError(f"{which}: there is no such checkpoint (`--ckpt_path`)")
        return Path(which)
    runs = Path(trainer.logger.root_dir if trainer.logger else trainer.default_root_dir)
    newest = last_checkpoint([runs])
    if newest is None:
        raise ExportError(f"{runs}: no checkpoint there; train first, or name one with `--ckpt_path`")
    if which == "last":
        return newest
    states = read_checkpoint(newest).get("callbacks", {})
    named = [state["best_model_path"] for name, state in states.items() if name.startswith("ModelCheckpoint")]
    if not any(named):
        return newest
    # A run's folder may have been moved since: then the best checkpoint lies beside the last.
    places = [place for path in map(Path, filter(None, named)) for place in (path, newest.parent / path.name)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ExportError(f"{places[0]}: the best checkpoint of the newest run is gone; name one with `--ckpt_path`")
    return found


def load_checkpoint(module: FunctionCallingModule, checkpoint: Path) -> dict[str, Any]:
    """Load the trained weights of a checkpoint into a module; every key must fit.

    Returns:
        All that the checkpoint holds.

    Raises:
        CheckpointError: If the file is no checkpoint.
        BaseModelError: If it is one of another model.
    """
    state = read_checkpoint(checkpoint)
    module.on_load_checkpoint(state)
    module.load_state_dict(state["state_dict"], strict=False)
    return state


def _check_request(folder: Path, module: FunctionCallingModule, merge: bool, repository: str | None) -> None:
    """Find out what cannot work before anything is loaded."""
    if folder.exists():
        raise ExportError(f"{folder}: exists already; choose another folder (`--output`)")
    if module.peft is None and not merge:
        raise ExportError("`--merge false` writes an adapter, and `model.peft` is null: there is none")
    try:
        validate_repo_id(repository or "unnamed")
    except HFValidationError as error:
        raise ExportError(f"{repository}: no name of a repository (`--push_to_hub USER/NAME`): {error}") from error


def _upload(folder: Path, name: str) -> None:
    try:
        url = HfApi().create_repo(name, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message="Export of fc-lightning")
    except (HfHubHTTPError, OSError) as error:
        raise ExportError(
            f"{name}: could not be uploaded: {first_line(error)}; "
            f"the export is whole, try again with: hf upload {name} {folder}"
        ) from error
    print(f"{folder} → {url}")
