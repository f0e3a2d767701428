"""Writing a model folder: weights, tokenizer, chat template and response template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig

from fc_lightning.chat_template.response_template import response_template
from fc_lightning.chat_template.template import ChatTemplate


def write_model(
    model: Any,
    template: ChatTemplate,
    folder: Path,
    merge: bool = True,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    weights: Mapping[str, Any] | None = None,
) -> None:
    """Write a model, its tokenizer, and the templates by which servers write its prompts and read its answers.

    Args:
        model: A PeftModel or a whole model. Merging uses it up.
        template: What it was trained with.
        folder: An existing folder.
        merge: Whether to merge an adapter, or to write it alone.
        dtype: What the merged weights are rounded to; as they are if not given.
        revision: Of the base, for the adapter's configuration.
        weights: The adapter's, if not those in the model's memory: see :func:`fc_lightning.models.loading.trained_weights`.
    """
    tokenizer = template.tokenizer
    if template.chat_format and template.has_generation_prompt(template.chat_format.generation_prompt):
        tokenizer.response_template = response_template(template.chat_format, tokenizer.eos_token)
    tokenizer.save_pretrained(str(folder))
    (folder / "chat_template.jinja").write_text(template.source, encoding="utf-8")
    if isinstance(model, PeftModel) and not merge:
        for config in model.peft_config.values():
            config.revision = revision
        model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)
        return
    whole = model.merge_and_unload() if isinstance(model, PeftModel) else model
    whole.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=template.end_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    whole.to(dtype or whole.dtype).save_pretrained(str(folder))
