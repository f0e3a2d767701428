"""Decoder layers compiled with ``torch.compile``, without a race in the kernels that Inductor writes for a GPU.

If a value is used before and after a sum over its row, Inductor may write a kernel with two loops over the row: the
first one stores the value, the second one reads it back. Nothing makes the second loop wait for the first one
(https://github.com/pytorch/pytorch/issues/190517), so a thread may read what another thread has not stored yet. The
gradients of Gemma's queries come from such a kernel. On an H200 they were random in one of six processes, although the
loss was exact, and 8 of 33 training runs collapsed. Each process measures which launch parameters are fastest, which
may be why the others were right.

A persistent kernel keeps the row in registers, and reads nothing back.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch._inductor import config
from torch._inductor.choices import InductorChoices
from torch._inductor.runtime.hints import ReductionHint
from torch._inductor.virtualized import V

from fc_lightning.utils.pretrained import BaseModelError

_TAKES_CHOICES = hasattr(config, "inductor_choices_class")  # torch 2.8 and 2.9 do not; 2.10 was not checked
_LONGEST_ROW = 8192  # elements; the hidden states of Gemma 3 27B have 5,376


class PersistentRows(InductorChoices):
    """Inductor's choices, except that every kernel which sums over rows is persistent."""

    @staticmethod
    def should_use_persistent_reduction(features: Any, cooperative_reduction: bool) -> bool:
        """Whether a kernel keeps its rows in registers."""
        if InductorChoices.should_use_persistent_reduction(features, cooperative_reduction):
            return True
        # Inductor has no hint for a kernel that also transposes. Sums over columns are left to it.
        is_row = features.get_reduction_hint() in (ReductionHint.INNER, ReductionHint.DEFAULT)
        return is_row and V.graph.sizevars.statically_known_leq(features.reduction_numel, _LONGEST_ROW)

    def uuid(self) -> str:
        """Part of the key under which Inductor caches kernels."""
        return f"{__name__}.PersistentRows/{_LONGEST_ROW}"


def compile_layers(model: Any, device: torch.device, setting: bool | Literal["auto"] = True) -> None:
    """Compile the layers, if so configured; ``auto`` does so on a GPU.

    On a GPU, they are compiled once for each row length, with and without gradients: rows are padded to a few lengths,
    and a graph with dynamic length would have no kernel for flex attention. Dynamo's limit of eight graphs is too low
    for the powers of two that unpacked rows are padded to.

    Raises:
        BaseModelError: If they must be compiled for a GPU, and this version of torch would write kernels with a race.
    """
    on_gpu = device.type == "cuda"
    if setting == "auto":
        setting = on_gpu and _TAKES_CHOICES
    if not setting:
        return
    if _TAKES_CHOICES:
        config.inductor_choices_class = PersistentRows
    elif on_gpu:
        raise BaseModelError(
            f"`model.compile`: on a GPU this needs torch 2.11 or later; this is {torch.__version__}, whose compiled "
            "kernels can compute wrong gradients"
        )
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for layer in model.get_decoder().layers:
        layer.compile(dynamic=False if on_gpu else None)
