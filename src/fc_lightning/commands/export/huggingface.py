"""Export target: a Hugging Face folder, merged or as an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from fc_lightning.commands.export.model_card import write_card
from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.models.loading import load_config
from fc_lightning.models.saving import write_model
from fc_lightning.training.module import FunctionCallingModule
from fc_lightning.utils.pretrained import commit_of


def write_huggingface_folder(
    folder: Path,
    trainer: Trainer,
    module: FunctionCallingModule,
    data: FunctionCallingDataModule,
    checkpoint: Path,
    state: dict[str, Any],
    merge: bool,
    dtype: str,
) -> None:
    """Write weights, tokenizer, templates, generation config and model card.

    Args:
        folder: An empty folder.
        trainer: Of the run's configuration.
        module: Has the checkpoint's weights.
        data: Has the chat template.
        checkpoint: The file that is exported.
        state: Its content.
        merge: Whether to merge the adapter into the base.
        dtype: Name of the precision of the merged weights, or ``auto`` for the base's.
    """
    base_dtype = load_config(module.base, module.revision).dtype or torch.float32
    merged_dtype = base_dtype if dtype == "auto" else getattr(torch, dtype)
    write_model(module.model, data.template, folder, merge, merged_dtype, commit_of(module.base, module.revision))
    write_card(folder, trainer, module, data, checkpoint, state, merged_dtype if merge else None)
