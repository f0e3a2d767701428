"""Parameters and floating-point operations of a model."""

from __future__ import annotations

from torch import nn

from fc_lightning.data.collator import Batch
from fc_lightning.models.lora import unwrap_peft


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """How many parameters are trained, and how many there are."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def training_flops(model: nn.Module, batch: Batch) -> float:
    """Floating-point operations that a forward and a backward pass over a batch need.

    Two for each weight of a matrix and token in the forward pass, two in the backward pass, and two more where the
    weight itself is trained; the head's for supervised tokens alone. In attention 12 for each pair of positions that
    see each other, layer, head and width. What is computed again, or on padding, is not needed.

    Args:
        model: A causal language model of transformers, or a PeftModel around one.
        batch: See :class:`fc_lightning.data.packing.Batch`.
    """
    causal, head = unwrap_peft(model), unwrap_peft(model).get_output_embeddings()
    config = causal.config.get_text_config()

    def of(module: nn.Module) -> int:
        matrices = [weight for weight in module.parameters() if weight.dim() == 2]
        return sum(weight.numel() * (6 if weight.requires_grad else 4) for weight in matrices)

    layers = causal.get_decoder().layers
    total = batch["num_tokens"] * sum(map(of, layers)) + batch["num_supervised"] * of(head)
    width = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads) * config.num_attention_heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(layers)
    in_rows = [[end - start for at, start, end in batch["documents"] if at == row] for row in range(len(batch["ids"]))]
    lengths = [n for row, ids in zip(in_rows, batch["ids"], strict=True) for n in row[: len(ids)]]  # not of padding
    for length in lengths:
        for kind in kinds:
            seen = min(config.sliding_window, length) if kind == "sliding_attention" else length
            total += 12 * width * (seen * (seen + 1) / 2 + (length - seen) * seen)
    return total
