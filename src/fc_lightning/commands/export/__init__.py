"""``export``: exports a checkpoint's model for use in other programs."""

from __future__ import annotations

import shlex
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from huggingface_hub import HfApi
from huggingface_hub.utils import HfHubHTTPError, HFValidationError, validate_repo_id
from lightning import Trainer

from fc_lightning.commands.checkpoints import find_checkpoint, load_checkpoint
from fc_lightning.commands.export.model_card import write_card
from fc_lightning.conversation.native_calls import FUNCTIONGEMMA
from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.models.loading import load_config
from fc_lightning.models.saving import write_model
from fc_lightning.training.module import FunctionCallingModule
from fc_lightning.utils.atomic_files import atomic_folder, wrap_os_errors
from fc_lightning.utils.errors import UserError, first_line
from fc_lightning.utils.pretrained import commit_of

__all__ = ["ExportError", "export"]


class ExportError(UserError):
    """The export is impossible as requested. The message says what to do."""


def export(
    trainer: Trainer,
    model: FunctionCallingModule,
    datamodule: FunctionCallingDataModule,
    output: str,
    ckpt_path: str = "best",
    merge: bool = True,
    format: Literal["huggingface", "gguf"] = "huggingface",
    dtype: Literal["auto", "float32", "bfloat16", "float16", "q8_0"] = "auto",
    push_to_hub: str | None = None,
) -> None:
    """Write a folder that servers can load: weights, tokenizer, templates, generation config and model card.

    The folder is written atomically.

    Args:
        trainer: The trainer, which has the folder of the runs.
        model: The module, configured as for training.
        datamodule: Has the chat template.
        output: The folder to write; it must not exist.
        ckpt_path: A checkpoint file, or ``best`` or ``last`` of the newest run of this configuration.
        merge: Whether to merge the adapter into the base, or to write only the adapter.
        format: ``huggingface`` is a folder for transformers, vLLM and MLX; ``gguf`` is a file for llama.cpp and Ollama.
        dtype: Precision of the merged weights; ``auto`` is the precision of the base. The merge itself is computed in
            float32 and rounded once. ``q8_0`` has 8 bits in blocks, for GGUF only.
        push_to_hub: A repository on the Hub, USER/NAME, to upload the folder to; a new one is private.

    Raises:
        ExportError: If the folder exists, or it cannot be written or uploaded.
        CheckpointError: If there is no such checkpoint.
    """
    folder = Path(output)
    _check_request(folder, model, merge, push_to_hub)
    _check_format(model, merge, format, dtype)
    checkpoint = find_checkpoint(trainer, ckpt_path)
    trainer.strategy.connect(model)
    model.trainer = trainer
    if merge:  # an adapter can only be merged into full-precision matrices
        model.weight_dtype, model.quantization = "float32", None
    print(f"loading {model.base} and {checkpoint}", flush=True)
    state = load_checkpoint(model, checkpoint)
    base_dtype = str(load_config(model.base, model.revision).dtype or torch.float32).removeprefix("torch.")
    weight_dtype = base_dtype if dtype == "auto" else dtype
    print(f"writing {folder}", flush=True)
    with (
        wrap_os_errors(folder, error_type=ExportError, details="; no files were left behind"),
        atomic_folder(folder) as partial,
    ):
        if format == "gguf":
            _write_gguf(partial, model, datamodule, weight_dtype)
        else:
            revision = commit_of(model.base, model.revision)
            write_model(model.model, datamodule.template, partial, merge, getattr(torch, weight_dtype), revision)
            if datamodule.template.syntax is FUNCTIONGEMMA:
                plugin = files("fc_lightning.commands.export") / "vllm_functiongemma.txt"
                (partial / "vllm_tool_parser.py").write_text(plugin.read_text(encoding="utf-8"), encoding="utf-8")
        kind = format if merge else "adapter"
        write_card(partial, trainer, model, datamodule, checkpoint, state, kind, weight_dtype)
    shown = shlex.quote(str(folder))
    next_step = {"gguf": f"llama-server -m {shown}/model.gguf --jinja", "huggingface": f"transformers serve {shown}"}
    print(f"{checkpoint} → {folder}" + (f"\nnext:    {next_step[format]}" if merge else ""))
    if push_to_hub:
        _upload(folder, push_to_hub)


def _check_request(folder: Path, module: FunctionCallingModule, merge: bool, repository: str | None) -> None:
    """Reject a request that cannot succeed before anything is loaded."""
    if folder.exists():
        raise ExportError(f"{folder}: already exists; choose another folder (`--output`)")
    if module.peft is None and not merge:
        raise ExportError("`--merge false` writes an adapter, but `model.peft` is null: there is none")
    try:
        validate_repo_id(repository or "unnamed")
    except HFValidationError as error:
        raise ExportError(f"{repository}: not a repository name (`--push_to_hub USER/NAME`): {error}") from error


def _check_format(module: FunctionCallingModule, merge: bool, format: str, dtype: str) -> None:
    if format == "gguf":
        if not merge:
            raise ExportError("`--format gguf` needs a merged model: remove `--merge false`")
        from fc_lightning.commands.export.gguf import check_convertible

        check_convertible(load_config(module.base, module.revision))
    elif dtype == "q8_0":
        raise ExportError("`--dtype q8_0` is for `--format gguf` only")


def _write_gguf(folder: Path, module: FunctionCallingModule, data: FunctionCallingDataModule, dtype: str) -> None:
    """Merge into a temporary folder, which the file is made from."""
    from fc_lightning.commands.export.gguf import modelfile, write_gguf

    syntax = data.template.syntax
    with TemporaryDirectory(dir=folder) as merged:
        # Other types than bfloat16 are rounded once, from float32.
        precision = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        write_model(module.model, data.template, Path(merged), dtype=precision)
        write_gguf(Path(merged), folder / "model.gguf", dtype, syntax.response_tags[0] if syntax else None)
    if text := modelfile(data.template):
        (folder / "Modelfile").write_text(text, encoding="utf-8")


def _upload(folder: Path, name: str) -> None:
    try:
        url = HfApi().create_repo(name, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message="Export of fc-lightning")
    except (HfHubHTTPError, OSError) as error:
        raise ExportError(
            f"{name}: upload failed: {first_line(error)}; the export is complete, retry with: hf upload {name} {folder}"
        ) from error
    print(f"{folder} → {url}")
