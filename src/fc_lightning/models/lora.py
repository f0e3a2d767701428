"""Adapters: new-token rows, an untied head, and the PeftModel around a base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from fc_lightning.models.peft_internals import adapts_module, use_fast_forward
from fc_lightning.utils.pretrained import BaseModelError


def unwrap_peft(model: nn.Module) -> Any:
    """The causal language model of transformers inside a PeftModel; any other model as it is."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


@torch.no_grad()
def add_token_rows(model: PreTrainedModel, pieces: Mapping[int, Sequence[int]]) -> None:
    """Initialise the rows of new tokens, in the embedding and in the head, to the mean of their pieces' rows.

    Args:
        model: Changed in place. Its matrices grow if the new ids do not fit.
        pieces: For each new id, the ids of the pieces that its text was tokenized into before.
    """
    if not pieces:
        return
    num_rows = max(pieces) + 1
    if num_rows > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(num_rows, mean_resizing=False)
    for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
        for token, parts in pieces.items():
            layer.weight[token] = layer.weight[list(parts)].float().mean(0).to(layer.weight.dtype)


def untie_head(model: PreTrainedModel) -> None:
    """Give the head a matrix of its own.

    An adapter on a head that is tied to the embedding trains, but merging it would change the embedding too.
    """
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    model.config.tie_word_embeddings = False
    model.config.get_text_config().tie_word_embeddings = False


def add_adapter(model: PreTrainedModel, peft: PeftConfig, new_tokens: Sequence[int]) -> PeftModel:
    """Wrap a base in an adapter. The base is frozen, the adapter is fp32, and of the embedding only new rows train.

    Args:
        model: The base, with rows for the new tokens.
        peft: A configuration whose weights are inside the model: LoRA and its relatives.
        new_tokens: Ids whose rows are trained.

    Raises:
        BaseModelError: If this type of adapter cannot train what is asked for.
    """
    kind = type(peft).__name__
    if peft.is_prompt_learning:
        raise BaseModelError(
            f"`model.peft`: {kind} puts tokens of its own before each row, so packs cannot be kept apart"
        )
    if adapts_module(peft, "lm_head") and getattr(model.config, "tie_word_embeddings", False):
        untie_head(model)
    if new_tokens:
        if not hasattr(peft, "trainable_token_indices"):
            raise BaseModelError(
                f"`model.peft`: {kind} cannot train rows of new tokens; set `model.special_tokens: []`"
            )
        peft.trainable_token_indices = {_embedding_name(model): list(new_tokens)}
    peft.task_type = peft.task_type or "CAUSAL_LM"
    adapted = get_peft_model(model, peft, autocast_adapter_dtype=True)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    use_fast_forward(adapted)
    return adapted


def _embedding_name(model: PreTrainedModel) -> str:
    embedding = model.get_input_embeddings()
    return next(name for name, module in model.named_modules() if module is embedding).rsplit(".", 1)[-1]
