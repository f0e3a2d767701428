"""Writing a model folder: weights, tokenizer, chat template and response template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from fc_lightning.chat_template.response_template import response_template
from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.chat_template.tokens import save_tokenizer
from fc_lightning.models.lora import saved_with_adapter
from fc_lightning.models.merging import merge_adapter


def write_model(
    model: Any,
    template: ChatTemplate,
    folder: Path,
    merge: bool = True,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    weights: Mapping[str, Any] | None = None,
) -> None:
    """Write a model, its tokenizer, and the templates that servers use to write prompts and to read answers.

    Args:
        model: A PeftModel or a model of transformers. Merging consumes it.
        template: The chat template that it was trained with.
        folder: An existing folder.
        merge: Whether to merge an adapter into the base, or to write the adapter alone.
        dtype: Precision of merged weights; unchanged if missing.
        revision: Revision of the base, for the adapter's configuration.
        weights: The adapter's weights, if not those in memory: see :func:`fc_lightning.models.fsdp.trained_weights`.
    """
    tokenizer = template.tokenizer
    if template.chat_format and template.has_generation_prompt(template.chat_format.generation_prompt):
        tokenizer.response_template = response_template(template.chat_format, tokenizer.eos_token, template.syntax)
    save_tokenizer(tokenizer, folder, template.syntax.mlx_parser if template.syntax else "json_tools")
    (folder / "chat_template.jinja").write_text(template.source, encoding="utf-8")
    if isinstance(model, PeftModel) and not merge:
        _write_adapter(model, folder, revision, weights or {})
        return
    merged = merge_adapter(model) if isinstance(model, PeftModel) else model
    merged.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=template.end_ids(tokenizer, template.syntax),
        pad_token_id=tokenizer.pad_token_id,
    )
    merged.to(dtype or merged.dtype).save_pretrained(str(folder))


def _write_adapter(model: PeftModel, folder: Path, revision: str | None, weights: Mapping[str, Any]) -> None:
    for config in model.peft_config.values():
        config.revision = revision
    # Some adapters also save what they froze, such as random projections.
    model.save_pretrained(str(folder), state_dict={**model.state_dict(), **weights}, save_embedding_layers=False)
    further = saved_with_adapter(model)
    if further:
        file = folder / "adapter_model.safetensors"
        save_file({**load_file(file), **further}, file, metadata={"format": "pt"})
