"""Small random models of Gemma 3 and Gemma 4 whose vocabulary has the tags of a native tool format."""

from pathlib import Path

import torch
from tests.helpers.native_conversations import native_tokenizer
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Gemma4ForCausalLM, Gemma4TextConfig

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 64,
}
GEMMA4 = {"global_head_dim": 32, "hidden_size_per_layer_input": 8, "num_global_key_value_heads": 1}


def write_native_base(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = native_tokenizer(name)
    size = len(tokenizer)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    common = {**SIZES, **ids, "bos_token_id": tokenizer.bos_token_id, "vocab_size": size}
    if name == "gemma4":
        model = Gemma4ForCausalLM(Gemma4TextConfig(**common, **GEMMA4, vocab_size_per_layer_input=size))
    else:
        model = Gemma3ForCausalLM(Gemma3TextConfig(**common, query_pre_attn_scalar=32))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
