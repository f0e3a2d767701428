"""Small random models of the Gemma 2 and Gemma 3 architectures, documents for them, and a plain reference loss."""

from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel

from fc_lightning.models.attention import BY_DOCUMENT
from fc_lightning.models.loading import load_base
from fc_lightning.models.lora import add_adapter, add_token_rows

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
DOCUMENTS = [
    {"id": "a", "input_ids": [2, *range(10, 27)], "supervised": [9, 14, 16, 18]},
    {"id": "b", "input_ids": [2, 30, 31, 32, 33], "supervised": [2, 5]},
    {"id": "c", "input_ids": [2, *range(40, 53)], "supervised": [0, 14]},
]


def loss_alone(model, document) -> torch.Tensor:
    """The summed loss of one document, computed by the plain forward pass of transformers."""
    ids = torch.tensor([document["input_ids"]])
    losses = F.cross_entropy(model(ids).logits[0, :-1].float(), ids[0, 1:], reduction="none")
    spans = zip(document["supervised"][::2], document["supervised"][1::2], strict=True)
    return sum((losses[max(start, 1) - 1 : end - 1].sum() for start, end in spans), torch.tensor(0.0))


def adapted(base: Path, head: bool = False, new_tokens: bool = True, dropout: float = 0.0) -> PeftModel:
    """A model with an adapter whose weights are far from their initial values."""
    model = load_base(str(base), None, torch.float32, BY_DOCUMENT)
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
