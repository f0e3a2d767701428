"""FSDP2: weights that are sharded over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from fc_lightning.models.lora import saved_with_adapter, unwrap_peft
from fc_lightning.models.loss import causal_loss_sum
from fc_lightning.utils.pretrained import BaseModelError


def shard(model: nn.Module, mesh: Any) -> None:
    """Shard the weights over the ranks of a device mesh: one unit for each decoder layer, one for all the rest.

    Embedding and head must be in the same unit, because they may share a matrix. The loss does not go through the
    model's ``forward``, and calls the head once for each chunk of labels, of which ranks have different numbers. As a
    forward method of the outer unit it gathers the head once, so that all ranks take part in the same collectives.

    Raises:
        BaseModelError: If a frozen matrix would have to be saved with the adapter.
    """
    causal = unwrap_peft(model)
    if isinstance(model, PeftModel) and saved_with_adapter(model):
        raise BaseModelError(
            "`model.peft`: with a LoRA on lm_head and new tokens the whole head is saved, which sharded weights do not "
            "allow; remove lm_head from `target_modules`, or set `model.special_tokens: []`"
        )
    for layer in causal.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(causal, mesh=mesh)
    causal.token_loss_sum = MethodType(causal_loss_sum, causal)
    register_fsdp_forward_method(causal, "token_loss_sum")
    model.register_state_dict_post_hook(_drop_frozen)


def _drop_frozen(model: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Leave the frozen weights out of a state: for a checkpoint, Lightning would gather all of them on one rank."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            state.pop(prefix + name, None)


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The trained weights by name. Shards are gathered, so all ranks must call this."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # validation leaves embedding and head gathered
    trained = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in trained.items()}


def are_finite(gradients: Sequence[Tensor]) -> Tensor:
    """Whether all gradients are finite, as a scalar tensor. Of sharded gradients, this rank's shards are checked."""
    local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    filled = [gradient for gradient in local if gradient.numel()]
    return torch.stack(torch._foreach_norm(filled)).isfinite().all() if filled else torch.tensor(True)
