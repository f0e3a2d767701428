"""Adapters: wraps a base in a PeftModel, trains new-token embeddings, and unties the head for merging."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from fc_lightning.models.adapter_support import (
    check_supported,
    targets_module,
    trains_token_rows,
    trains_whole_module,
)
from fc_lightning.models.loading import modules_without_text
from fc_lightning.models.peft_internals import use_fast_forward
from fc_lightning.utils.errors import first_line
from fc_lightning.utils.pretrained import BaseModelError


def unwrap_peft(model: nn.Module) -> Any:
    """The causal language model of transformers inside a PeftModel; any other model as it is."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


@torch.no_grad()
def add_token_rows(model: PreTrainedModel, pieces: Mapping[int, Sequence[int]]) -> None:
    """Initialize new-token rows, in the embedding and in the head, to the mean of the rows of their sub-tokens.

    The sub-tokens (``pieces``) are the ids that the text of a new token was tokenized into before. Matrices grow if new
    ids do not fit.
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
    """Give a tied head its own weight matrix."""
    head = _linear_of(model.get_output_embeddings())
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    model.config.tie_word_embeddings = False
    model.config.get_text_config().tie_word_embeddings = False


def add_adapter(model: PreTrainedModel, peft: PeftConfig, new_tokens: Sequence[int]) -> PeftModel:
    """Wrap a base in an adapter. The base is frozen, the adapter is fp32, and of the embedding only new rows train.

    Everything that is trained is part of PEFT's configuration, so that PEFT alone restores the same model. Modules that
    no text passes through have no adapter.

    Raises:
        BaseModelError: If the configuration is not supported, or cannot train new-token embeddings.
    """
    check_supported(peft, model)
    if new_tokens:
        _train_token_rows(model, peft, new_tokens)
    peft.task_type = peft.task_type or "CAUSAL_LM"
    _exclude(peft, modules_without_text(model))
    try:
        with warnings.catch_warnings():
            # The advice is for merging, and `merging.merge_adapter` unties the head first.
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True` and a tied layer")
            adapted = get_peft_model(model, peft, autocast_adapter_dtype=True)
    except (ValueError, TypeError, NotImplementedError, ImportError, AttributeError) as error:
        raise BaseModelError(f"`model.peft`: {type(peft).__name__}: {first_line(error)}") from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in adapted.modules():
        if isinstance(module, ModulesToSaveWrapper):
            _convert_between_dtypes(module)
    use_fast_forward(adapted)
    return adapted


def _exclude(peft: PeftConfig, modules: Sequence[str]) -> None:
    """Exclude modules in addition to those that the configuration excludes, as a pattern or as ends of names."""
    if not modules or not hasattr(peft, "exclude_modules"):
        return
    patterns = [rf"({'|'.join(map(re.escape, modules))})\..*"]
    if isinstance(peft.exclude_modules, str):
        patterns.append(peft.exclude_modules)
    elif peft.exclude_modules:
        patterns.append(rf"(.*\.)?({'|'.join(map(re.escape, peft.exclude_modules))})")
    peft.exclude_modules = "|".join(f"({pattern})" for pattern in patterns)


def _convert_between_dtypes(wrapper: ModulesToSaveWrapper) -> None:
    """Cast inputs and outputs of fp32 module copies to fit the layers around them. Under autocast it does nothing."""
    base = next(wrapper.original_module.parameters()).dtype

    def convert(value: Any, dtype: torch.dtype) -> Any:
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if is_float and not torch.is_autocast_enabled(value.device.type) else value

    for copy in wrapper.modules_to_save.values():
        copy.register_forward_pre_hook(lambda _, inputs: tuple(convert(one, torch.float32) for one in inputs))
        copy.register_forward_hook(lambda _, inputs, output: convert(output, base))


def _train_token_rows(model: PreTrainedModel, peft: PeftConfig, new_tokens: Sequence[int]) -> None:
    """Have PEFT train new-token embeddings, and the new rows of the head if it is not tied."""
    kind = type(peft).__name__
    embedding, head = _name_of(model, model.get_input_embeddings()), _name_of(model, model.get_output_embeddings())
    tied = model.config.tie_word_embeddings
    if tied and trains_whole_module(peft, embedding) != trains_whole_module(peft, head):
        raise BaseModelError(
            f"`model.peft`: {embedding} and {head} share the new-token embeddings: name both in `modules_to_save`, or "
            "neither"
        )
    if tied and targets_module(peft, head) and getattr(peft, "use_dora", False):
        raise BaseModelError(
            f"`model.peft`: DoRA on {head} cannot be combined with trained new-token embeddings; remove {head} from "
            "`target_modules`, or set `model.special_tokens: []`"
        )
    matrices = [embedding] if tied else [embedding, head]
    matrices = [name for name in matrices if not trains_whole_module(peft, name)]
    if not matrices:
        return
    if not trains_token_rows(type(peft)):
        raise BaseModelError(f"`model.peft`: {kind} cannot train new-token embeddings; set `model.special_tokens: []`")
    if targets_module(peft, embedding):
        raise BaseModelError(
            f"`model.peft`: {kind} on {embedding} cannot be combined with trained new-token embeddings; remove "
            f"{embedding} from `target_modules`, or set `model.special_tokens: []`"
        )
    # PEFT cannot train rows of an untied head that has a LoRA: the LoRA adapts them.
    peft.trainable_token_indices = {name: list(new_tokens) for name in matrices if not targets_module(peft, name)}


def saved_with_adapter(model: PeftModel) -> dict[str, Tensor]:
    """Weights beyond the adapter's own without which PEFT cannot restore the model, by the name in its file.

    PEFT resizes the base for new tokens and initializes their rows randomly. It cannot put trained rows into an untied
    head that has a LoRA, so the complete head has to be saved.
    """
    causal = unwrap_peft(model)
    head = causal.get_output_embeddings()
    if not isinstance(causal.get_input_embeddings(), TrainableTokensWrapper) or not isinstance(head, LoraLayer):
        return {}
    if isinstance(head.base_layer, TrainableTokensWrapper):  # shares the rows of the embedding
        return {}
    name = _name_of(causal, head)
    return {f"base_model.model.{name}.base_layer.weight": head.base_layer.weight.detach()}


def _linear_of(head: Any) -> nn.Linear:
    """The linear layer of the base inside whatever PEFT has wrapped around it."""
    while not isinstance(head, nn.Linear):
        head = head.base_layer if isinstance(head, BaseTunerLayer) else head.original_module
    return head


def _name_of(model: nn.Module, module: nn.Module) -> str:
    """The full name of a module inside a model."""
    return next(name for name, candidate in model.named_modules() if candidate is module)
