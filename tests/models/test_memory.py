"""The memory estimate against the tensors that autograd keeps."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from fc_lightning.data.collator import PackingCollator
from fc_lightning.models.attention import BY_DOCUMENT
from fc_lightning.models.loading import load_base
from fc_lightning.models.loss import token_loss_sum
from fc_lightning.models.memory import estimate_training_bytes
from fc_lightning.models.peft_internals import use_fast_forward


def base_for(attention, dtype):
    """The tiny Gemma 2, which caps its scores; for sdpa, which cannot, a Llama."""
    if attention != "sdpa":
        return load_base("tests/models/tiny_gemma2", None, dtype, attention)
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=600, num_hidden_layers=3, attn_implementation=attention, **sizes)
    return LlamaForCausalLM(config).to(dtype)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("attention", ["eager", BY_DOCUMENT, "sdpa"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_is_what_autograd_keeps(checkpointing, attention, half):
    """The formula against every tensor that autograd keeps for the backward pass, each storage once.

    With checkpointing autograd keeps little. The estimate adds one layer, twice, for its activations and gradients.
    """
    model = base_for(attention, torch.bfloat16 if half else torch.float32)
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=1, lora_dropout=0.1, target_modules=modules))
    use_fast_forward(adapted)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    adapted.train()
    rows = [{"id": "a", "input_ids": list(range(3, 515)), "supervised": [500, 512]}]
    weights = {parameter.untyped_storage().data_ptr() for parameter in adapted.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autocast("cpu", torch.bfloat16, enabled=half), torch.autograd.graph.saved_tensors_hooks(keep, keep):
        token_loss_sum(adapted, PackingCollator(0)([rows]), 512)
    measured = sum(size for size, _ in kept.values())
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    expected = estimate_training_bytes(adapted, 512, 512, 0, checkpointing, half) - (14 if half else 12) * trained
    if checkpointing:
        whole = estimate_training_bytes(adapted, 512, 512, 0, False, half) - (14 if half else 12) * trained
        layers = model.config.num_hidden_layers
        assert measured < expected / 10
        assert expected - 2 * whole / layers == layers * 512 * model.config.hidden_size * (2 if half else 4)
    else:
        assert expected == pytest.approx(measured, rel=0.06)
