"""The merged model of an evaluation: equal to the exported one, and gone without a trace afterwards."""

import copy

import pytest
import torch
from peft import LoraConfig
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from fc_lightning.models.lora import add_adapter, unwrap_peft
from fc_lightning.models.merging import merge_adapter, merged_for_inference

IDS = torch.tensor([[2, 40, 61, 9, 13, 62, 5]])


def adapted(dtype, **peft):
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 8},
    )
    model = Gemma3ForCausalLM(config).to(dtype)
    targets = ["q_proj", "v_proj", "down_proj"]
    model = add_adapter(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False, **peft), [61, 62])
    for name, parameter in model.named_parameters():
        if "trainable_tokens" in name:
            torch.nn.init.normal_(parameter)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_evaluated_model_is_the_exported_one(dtype):
    model = adapted(dtype)
    # An export merges in fp32 and rounds once.
    exported = merge_adapter(copy.deepcopy(model).float()).to(dtype)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    logits = model(IDS).logits
    with torch.autocast("cpu", torch.bfloat16), merged_for_inference(model) as causal, torch.no_grad():
        weights = dict(causal.named_parameters())
        for name, weight in exported.named_parameters():
            if name.endswith(("q_proj.weight", "v_proj.weight", "down_proj.weight")):
                merged = weights[name.replace(".weight", ".base_layer.weight")]
                assert torch.equal(merged, weight)
                assert not torch.equal(
                    merged, before[f"base_model.model.{name.replace('.weight', '.base_layer.weight')}"]
                )
        with torch.autocast("cpu", enabled=False):
            # Rows of new tokens are not merged, so their embeddings are rounded after they are scaled.
            tolerance = 1e-5 if dtype == torch.float32 else 1e-2
            torch.testing.assert_close(causal(IDS).logits, exported(IDS).logits, atol=tolerance, rtol=tolerance)
        assert torch.is_autocast_enabled("cpu") == (dtype == torch.float32)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    assert torch.equal(model(IDS).logits, logits)


def test_an_error_leaves_nothing_merged():
    model = adapted(torch.float32)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), merged_for_inference(model):
        raise KeyboardInterrupt
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in before.items())
    assert not any(getattr(module, "merged", False) for module in model.modules())


@pytest.mark.parametrize("reason", ["dora", "memory", "no adapter"])
def test_what_cannot_be_merged_is_evaluated_as_it_is(monkeypatch, reason):
    model = adapted(torch.float32, use_dora=reason == "dora")
    if reason == "memory":
        monkeypatch.setattr("fc_lightning.models.merging._fits_twice", lambda layers: False)
    if reason == "no adapter":
        model = unwrap_peft(model)
    expected = model(IDS).logits
    with merged_for_inference(model) as causal:
        assert not any(getattr(module, "merged", False) for module in causal.modules())
        assert torch.equal(causal(IDS).logits, expected)
