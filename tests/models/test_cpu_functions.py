"""The functions for a CPU against the operations of transformers and PEFT that they stand for."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

from fc_lightning.models import cpu_functions
from fc_lightning.models.cpu_functions import use_fast_norms
from fc_lightning.models.peft_internals import use_fast_forward


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_equal_those_of_transformers(dtype):
    torch.manual_seed(0)
    original = Gemma3RMSNorm(48).to(dtype).requires_grad_(False)
    original.weight.normal_()
    fast = copy.deepcopy(original)
    use_fast_norms(fast)
    x, upstream = (3 * torch.randn(2, 7, 48)).to(dtype), torch.randn(2, 7, 48).to(dtype)
    results = []
    for norm in (original, fast):
        given = x.clone().requires_grad_()
        out = norm(given)
        out.backward(upstream)
        results.append((out.detach(), given.grad))
        assert torch.equal(given, x)  # unchanged
    # Results of half precision may be rounded to the next number.
    out_rtol, gradient_rtol = (1e-6, 1e-5) if dtype == torch.float32 else (2**-7, 0.01)
    torch.testing.assert_close(results[1][0], results[0][0], rtol=out_rtol, atol=0.0)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=gradient_rtol, atol=1e-5)
    assert torch.equal(fast(x), results[1][0])  # without gradients
    assert "forward" in fast.__dict__


def test_trained_norms_stay_those_of_transformers():
    norm = Gemma3RMSNorm(8)
    use_fast_norms(norm)
    assert "forward" not in norm.__dict__


def test_a_norm_that_is_unfrozen_later_is_trained():
    norm = Gemma3RMSNorm(8).requires_grad_(False)
    use_fast_norms(norm)
    norm.requires_grad_()
    norm(torch.randn(2, 8)).sum().backward()
    assert norm.weight.grad.abs().min() > 0


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("first", [False, True], ids=["", "first_layer"])
def test_a_lora_layer_equals_that_of_peft(monkeypatch, autocast, first):
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights=False)
    original = get_peft_model(nn.Sequential(nn.Linear(24, 40, bias=False)), config)
    fast = copy.deepcopy(original)
    use_fast_forward(fast)
    calls = []
    function = cpu_functions._LoraLinear.apply
    monkeypatch.setattr(cpu_functions._LoraLinear, "apply", lambda *inputs: calls.append(1) or function(*inputs))
    x, upstream = torch.randn(2, 5, 24), torch.randn(2, 5, 40)
    results = []
    for model in (original, fast):
        given = x.clone().requires_grad_(not first)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model(given)
        out.backward(upstream.to(out.dtype))
        gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
        results.append([out.detach(), *gradients] + ([] if first else [given.grad]))
    assert len(calls) == 1
    for expected, actual in zip(*results, strict=True):
        assert actual.dtype == expected.dtype
        tolerance = 0.02 * expected.abs().max() if autocast else 1e-5
        torch.testing.assert_close(actual, expected, rtol=0, atol=float(tolerance))


def test_dropout_and_biases_are_those_of_peft(monkeypatch):
    """Such layers are not computed by the function for a CPU: a layer with a bias would lose it, dropout its draws."""
    monkeypatch.setattr(cpu_functions._LoraLinear, "apply", lambda *_: pytest.fail("the function was called"))
    for bias, settings in ((False, {"lora_dropout": 0.5}), (True, {}), (True, {"lora_bias": True})):
        config = LoraConfig(r=4, target_modules=["0"], init_lora_weights=False, **settings)
        original = get_peft_model(nn.Sequential(nn.Linear(24, 40, bias=bias)), config)
        for name, parameter in original.named_parameters():
            if "bias" in name:
                nn.init.normal_(parameter)
        fast = copy.deepcopy(original)
        use_fast_forward(fast)
        x, results = torch.randn(5, 24), []
        for model in (original, fast):
            torch.manual_seed(1)
            results.append(model(x))
        torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-5)
