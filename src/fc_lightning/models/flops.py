"""Parameters and floating-point operations of a model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from fc_lightning.data.collator import Batch
from fc_lightning.models.lora import unwrap_peft
from fc_lightning.utils.pretrained import sliding_windows


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """The number of trained parameters, and of all parameters."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


@dataclass(frozen=True)
class TrainingCost:
    """Floating-point operations that a forward and a backward pass require. Recomputation and padding do not count."""

    per_token: int  # matrix products of all decoder layers
    per_supervised_token: int  # the head, which is computed for supervised tokens only
    per_attended_pair: int  # attention of one layer, for a query and a key that it attends to
    windows: tuple[int | None, ...]  # sliding window of each decoder layer; None for full attention

    @classmethod
    def of_model(cls, model: nn.Module) -> TrainingCost:
        """The cost of training a causal language model of transformers, or a PeftModel around one."""
        causal = unwrap_peft(model)
        config, layers = causal.config.get_text_config(), causal.get_decoder().layers
        head_width = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
        return cls(
            per_token=sum(map(_matrix_flops, layers)),
            per_supervised_token=_matrix_flops(causal.get_output_embeddings()),
            # Scores and weighted values are 2 products of 2 operations per weight and pair, and twice that backward.
            per_attended_pair=12 * head_width * config.num_attention_heads,
            windows=sliding_windows(config),
        )

    def flops(self, batch: Batch) -> float:
        """The floating-point operations of one micro-batch."""
        pairs = sum(attended_pairs(length, window) for length in _document_lengths(batch) for window in self.windows)
        return (
            batch["num_tokens"] * self.per_token
            + batch["num_supervised"] * self.per_supervised_token
            + pairs * self.per_attended_pair
        )


def _matrix_flops(module: nn.Module) -> int:
    """Operations per token: 2 per weight of a matrix forward, 2 backward, and 2 more if the weight is trained."""
    # Where a trained copy takes the place of a module, the original is not computed.
    unused = {
        id(weight)
        for one in module.modules()
        if isinstance(one, ModulesToSaveWrapper)
        for weight in one.original_module.parameters()
    }
    matrices = [weight for weight in module.parameters() if weight.dim() == 2 and id(weight) not in unused]
    return sum(_num_weights(weight) * (6 if weight.requires_grad else 4) for weight in matrices)


def _num_weights(weight: nn.Parameter) -> int:
    """Bitsandbytes packs a 4-bit matrix into ``(numel / 2, 1)`` bytes and keeps its shape in ``quant_state``."""
    packed = getattr(weight, "quant_state", None)
    return math.prod(packed.shape) if packed is not None else weight.numel()


def _document_lengths(batch: Batch) -> list[int]:
    """Lengths of the documents of a batch. Padding, which is the document after the last one of a row, is skipped."""
    lengths: list[int] = []
    for row, ids in enumerate(batch["ids"]):
        in_row = [end - start for document_row, start, end in batch["documents"] if document_row == row]
        lengths += in_row[: len(ids)]
    return lengths


def attended_pairs(length: int, window: int | None) -> float:
    """Pairs of a query and a key in causal attention over a document."""
    seen = length if window is None else min(window, length)
    return seen * (seen + 1) / 2 + (length - seen) * seen
