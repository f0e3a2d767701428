"""The memory estimate against the tensors that autograd keeps."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from fc_lightning.data.collator import PackingCollator
from fc_lightning.models.attention import BY_DOCUMENT
from fc_lightning.models.loading import load_base
from fc_lightning.models.loss import token_loss_sum
from fc_lightning.models.memory import estimate_training_bytes, is_checkpointing, set_checkpointing
from fc_lightning.models.peft_internals import use_fast_forward

CPU = torch.device("cpu")


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
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_estimate_is_what_autograd_keeps(dropout, checkpointing, attention, half):
    """The formula against every tensor that autograd keeps for the backward pass, each storage once.

    With checkpointing autograd keeps the inputs of layers. The estimate adds one layer's activations and gradients.
    """
    model = base_for(attention, torch.bfloat16 if half else torch.float32)
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=1, lora_dropout=dropout, target_modules=modules))
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
    expected = estimate_training_bytes(adapted, 512, 512, 0, checkpointing, half, CPU) - (14 if half else 12) * trained
    if checkpointing:
        whole = estimate_training_bytes(adapted, 512, 512, 0, False, half, CPU) - (14 if half else 12) * trained
        layers = model.config.num_hidden_layers
        inputs = layers * 512 * model.config.hidden_size * (2 if half else 4)
        assert inputs <= measured < expected / 5
        assert inputs + whole / layers < expected < inputs + 2 * whole / layers
    else:
        assert expected == pytest.approx(measured, rel=0.04)


@pytest.mark.parametrize(
    ("setting", "device", "tokens", "free", "expected"),
    [
        (True, "cpu", 512, 0, "on (as configured)"),
        (False, "cuda", 512, 1, "off (as configured)"),
        ("auto", "cpu", 512, 0, "off (without a GPU)"),
        ("auto", "cuda", 0, 1, "off (the size of micro-batches is not known)"),
        ("auto", "cuda", 512, 1.2, "off (without it "),
        ("auto", "cuda", 512, 1.0, "on (without it "),
    ],
)
def test_layers_are_recomputed_where_they_do_not_fit(monkeypatch, setting, device, tokens, free, expected):
    """Free memory is given relative to the weights and the estimate; the allocator needs a share of it."""
    model, device = base_for("eager", torch.float32), torch.device(device)
    needed = sum(weight.nbytes for weight in model.parameters())
    needed += estimate_training_bytes(model, 512, 512, 256, False, True, device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free * needed), 0))
    assert set_checkpointing(model, setting, tokens, 256, True, device).startswith(f"gradient checkpointing {expected}")
    assert is_checkpointing(model) == expected.startswith("on")
