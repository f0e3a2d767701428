"""Small random models of the Gemma 2 and Gemma 3 architectures, and adapters on them."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel

from fc_lightning.models.attention import BY_DOCUMENT
from fc_lightning.models.loading import load_base
from fc_lightning.models.lora import add_adapter, add_token_rows, untie_head

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,  # shorter than the documents below
    "vocab_size": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}


def adapted(
    base: Path, head: bool = False, new_tokens: bool = True, dropout: float = 0.0, tied: bool = True
) -> PeftModel:
    """A model with an adapter whose weights are far from their initial values."""
    model = load_base(str(base), None, torch.float32, BY_DOCUMENT)
    if not tied:
        untie_head(model)
    pieces = {128: [10, 11], 129: [12, 13, 14]} if new_tokens else {}
    add_token_rows(model, pieces)
    targets = [*PROJECTIONS, "lm_head"] if head else PROJECTIONS
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=targets)
    model = add_adapter(model, config, list(pieces))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model
