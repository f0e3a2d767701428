"""Export: from a checkpoint to a folder that any server can open."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from peft import PeftModel
from transformers import GenerationConfig

from fc_lightning.chat_template import ChatTemplate
from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.module import FunctionCallingModule


class ExportError(ValueError):
    """Nothing can be exported as asked. The message says what to do."""


def export(
    trainer: Trainer,
    module: FunctionCallingModule,
    data: FunctionCallingDataModule,
    output: str,
    ckpt_path: str = "best",
    merge: bool = True,
) -> Path:
    """Write the model of a checkpoint, with tokenizer and chat template. The folder appears whole or not at all.

    Args:
        trainer: Knows where runs are written.
        module: Configured as it was for training.
        data: Gives the chat template.
        output: The folder to write.
        ckpt_path: A checkpoint file, or ``best`` or ``last`` of the newest run of this configuration.
        merge: Whether to merge the adapter into the base, or to write the adapter alone.

    Raises:
        ExportError: If there is no such checkpoint, or the folder exists.
    """
    folder = Path(output)
    if folder.exists():
        raise ExportError(f"{output}: exists already; choose another folder (`--output`)")
    checkpoint = find_checkpoint(trainer, ckpt_path)
    trainer.strategy.connect(module)
    module.trainer = trainer
    load_checkpoint(module, checkpoint)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write_model(module.model, data.template, partial, merge)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{checkpoint} → {folder}")
    return folder


def find_checkpoint(trainer: Trainer, which: str) -> Path:
    """The file of a checkpoint.

    Raises:
        ExportError: If there is none.
    """
    if which not in ("best", "last"):
        if not Path(which).is_file():
            raise ExportError(f"{which}: there is no such checkpoint (`--ckpt_path`)")
        return Path(which)
    runs = Path(trainer.logger.root_dir if trainer.logger else trainer.default_root_dir)
    files = sorted(runs.glob("**/*.ckpt"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise ExportError(f"{runs}: no checkpoint there; train first, or name one with `--ckpt_path`")
    if which == "last":
        return files[-1]
    states = torch.load(files[-1], map_location="cpu", weights_only=True).get("callbacks", {})
    best = [state["best_model_path"] for name, state in states.items() if name.startswith("ModelCheckpoint")]
    named = [Path(path) for path in best if path and Path(path).is_file()]
    return named[0] if named else files[-1]


def load_checkpoint(module: FunctionCallingModule, checkpoint: Path) -> None:
    """Load the trained weights of a checkpoint into a module; every key must fit."""
    state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module.on_load_checkpoint(state)
    module.load_state_dict(state["state_dict"], strict=False)


def write_model(model: Any, template: ChatTemplate, folder: Path, merge: bool = True, weights: Any = None) -> None:
    """Write a model, its tokenizer and chat template.

    Args:
        model: A PeftModel or a whole model. Merging uses it up.
        template: What it was trained with.
        folder: An existing folder.
        merge: Whether to merge an adapter, or to write it alone.
        weights: The adapter's, if not those in the model's memory: see :func:`fc_lightning.modeling.trained_weights`.
    """
    tokenizer = template.tokenizer
    if isinstance(model, PeftModel) and not merge:
        model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)
    else:
        whole = model.merge_and_unload() if isinstance(model, PeftModel) else model
        whole.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=template.end_ids(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
        )
        whole.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    (folder / "chat_template.jinja").write_text(template.source, encoding="utf-8")
