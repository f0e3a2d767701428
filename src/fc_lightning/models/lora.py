"""Leaner forward passes for PEFT's layers: the same parameters and the same results, with less copying.

PEFT's own code stays in charge of creating, saving and merging; only the way through a layer in training changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn
from transformers import PreTrainedModel

from fc_lightning.utils.pretrained import BaseModelError


def use_fast_forward(model: nn.Module) -> None:
    """Replace the forward pass of plain LoRA layers and of rows of new tokens, wherever they are in a model."""
    for module in model.modules():
        if isinstance(module, TrainableTokensLayer):
            indices = torch.tensor(next(iter(module.token_indices.values())))
            module.register_buffer("new_tokens", indices, persistent=False)
            module.forward = MethodType(_rows_forward, module)
        elif type(module) is LoraLinear and type(module.base_layer) is nn.Linear and not module.lora_variant:
            module.forward = MethodType(_lora_forward, module)


def _lora_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``base(x) + scaling · B A dropout(x)``.

    PEFT casts the whole input to the adapter's precision and scales the whole output; here the small matrices are cast
    (by autocast), the scale goes onto the ``(…, r)`` product, and the sum is part of the second matrix product.
    """
    if self.disable_adapters or self.merged or args or kwargs:
        return type(self).forward(self, x, *args, **kwargs)
    x = x.contiguous()  # see below
    out = self.base_layer(x)
    for name in self.active_adapters:
        if name not in self.lora_A:
            continue
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.lora_A[name].weight.dtype)
        inner = self.lora_A[name](self.lora_dropout[name](x)) * self.scaling[name]
        flat = torch.addmm(
            out.flatten(0, -2).to(inner.dtype), inner.flatten(0, -2), self.lora_B[name].weight.T.to(inner.dtype)
        )
        out = flat.view(out.shape).to(out.dtype)
    return out


def _rows_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The base's rows, but for the new tokens their trained ones; PEFT copies the whole matrix to put them in.

    In an embedding ``x`` are ids; in a tied head it is the hidden state, and the new tokens' logits are put over those
    that the base gives.
    """
    if self.disable_adapters or self.merged or args or kwargs:
        return type(self).forward(self, x, *args, **kwargs)
    (name,) = self.active_adapters
    rows = self.trainable_tokens_delta[name]  # (new, width)
    # A slice of the last positions is not contiguous, and torch then multiplies row by row: seconds on a CPU.
    out = self.base_layer(x.contiguous())
    if isinstance(self.base_layer, nn.Linear):
        return out.index_copy_(-1, self.new_tokens, F.linear(x.to(out.dtype), rows.to(out.dtype)))
    hits = x.unsqueeze(-1) == self.new_tokens  # (…, new)
    scale = self._get_embed_scale()
    rows = rows if scale is None else rows * scale.to(rows.dtype)
    # One hot picks the row; its backward pass sums the gradients of a row, all within (…, new) and (new, width).
    new = hits.to(rows.dtype) @ rows
    return torch.where(hits.any(-1, keepdim=True), new.to(out.dtype), out)


@torch.no_grad()
def add_token_rows(model: PreTrainedModel, pieces: Mapping[int, Sequence[int]]) -> None:
    """Give new tokens a row in the embedding, and in the head, that starts as the mean of their pieces' rows.

    Args:
        model: Changed in place; its matrices grow if the new ids do not fit.
        pieces: For each new id the ids of the pieces that its text was made of.
    """
    if not pieces:
        return
    rows = max(pieces) + 1
    if rows > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)
    for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
        for token, parts in pieces.items():
            layer.weight[token] = layer.weight[list(parts)].float().mean(0).to(layer.weight.dtype)


def untie_head(model: PreTrainedModel) -> None:
    """Give the head a matrix of its own.

    An adapter on a head that is tied to the embedding trains, but merging it would write into the embedding too.
    """
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    model.config.tie_word_embeddings = False
    model.config.get_text_config().tie_word_embeddings = False


def add_adapter(model: PreTrainedModel, peft: PeftConfig, new_tokens: Sequence[int]) -> PeftModel:
    """Wrap a base in an adapter: the base is frozen, the adapter is fp32, and of the embedding only new rows train.

    Args:
        model: The base, with rows for the new tokens.
        peft: Any configuration that puts its weights inside of the model (LoRA and its relatives).
        new_tokens: Ids whose rows are to be trained.

    Raises:
        BaseModelError: If the configuration cannot train what is asked of it.
    """
    kind = type(peft).__name__
    if peft.is_prompt_learning:
        raise BaseModelError(
            f"`model.peft`: {kind} puts tokens of its own before each row, so packs cannot be kept apart"
        )
    head_adapted = check_target_module_exists(peft, "lm_head")
    if head_adapted and getattr(model.config, "tie_word_embeddings", False):
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


def unwrap_peft(model: nn.Module) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model
