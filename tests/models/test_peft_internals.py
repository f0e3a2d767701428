"""The fast forward passes against PEFT's own."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.helpers.small_models import adapted
from torch import nn

from fc_lightning.models.attention import BY_DOCUMENT
from fc_lightning.models.loading import load_base
from fc_lightning.models.lora import add_adapter
from fc_lightning.models.peft_internals import use_fast_forward


@pytest.mark.parametrize("head", [False, True], ids=["", "lm_head"])
@pytest.mark.parametrize("new_tokens", [False, True], ids=["", "new_tokens"])
def test_fast_layers_equal_those_of_peft(base, head, new_tokens):
    """Logits and gradients are those of PEFT's forward passes."""
    fast = adapted(base, head, new_tokens)
    original = copy.deepcopy(fast)
    for module in original.modules():
        module.__dict__.pop("forward", None)
    ids = torch.tensor([[2, 10, 128 if new_tokens else 20, 30, 129 if new_tokens else 21, 31]])
    results = []
    for model in (fast, original):
        logits = model(ids).logits
        logits.square().mean().backward()
        results.append([logits.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_layers_equal_those_of_peft(bits):
    """The layers of bitsandbytes stand alone: its kernels want wider matrices than the tiny model has."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    inner = nn.Linear(128, 64, bias=False)
    if bits == 4:
        quantized = bitsandbytes.nn.Linear4bit(128, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    else:
        quantized = bitsandbytes.nn.Linear8bitLt(128, 64, bias=False, has_fp16_weights=False)
    quantized.load_state_dict(inner.state_dict())
    model = nn.Sequential(quantized.to("cpu"))
    model.is_loaded_in_8bit, model.is_loaded_in_4bit = bits == 8, bits == 4
    fast = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights=False))
    layer = fast.base_model.model[0]
    x = torch.randn(2, 5, 128)
    results = []
    for use_fast in (False, True):
        if use_fast:
            use_fast_forward(fast)
            assert "forward" in layer.__dict__
        fast.zero_grad()
        given = x.clone().requires_grad_()
        out = fast(given)
        out.square().sum().backward()
        gradients = [parameter.grad.clone() for parameter in fast.parameters() if parameter.requires_grad]
        results.append([out.detach(), given.grad, *gradients])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


def test_other_adapters_keep_their_forward_pass(base):
    model = load_base(str(base), None, torch.float32, BY_DOCUMENT)
    model = add_adapter(model, LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]), [])
    use_fast_forward(model)
    assert not any("forward" in module.__dict__ for module in model.modules() if "q_proj" in type(module).__name__)
    assert model(torch.tensor([[2, 3]])).logits.isfinite().all()
