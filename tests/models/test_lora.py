"""New-token rows and adapters: their initial values, and that merging preserves the logits."""

import pytest
import torch
from peft import LoraConfig
from tests.helpers.losses import DOCUMENTS
from tests.helpers.small_models import SIZES, adapted
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3TextConfig, SiglipVisionConfig

from fc_lightning.data.collator import PackingCollator
from fc_lightning.models.attention import BY_DOCUMENT
from fc_lightning.models.loading import load_base
from fc_lightning.models.lora import add_adapter, add_token_rows
from fc_lightning.models.loss import token_loss_sum
from fc_lightning.models.merging import merge_adapter


def test_a_new_row_is_initialised_to_the_mean_of_its_pieces(base):
    model = load_base(str(base), None, torch.float32, BY_DOCUMENT)
    before = model.get_input_embeddings().weight.detach().clone()
    add_token_rows(model, {128: [10, 11], 129: [12, 13, 14]})
    after = model.get_input_embeddings().weight
    torch.testing.assert_close(after[:128], before)
    torch.testing.assert_close(after[128], (before[10] + before[11]) / 2)
    torch.testing.assert_close(after[129], before[[12, 13, 14]].mean(0))
    assert model.get_output_embeddings().weight.shape[0] == 130


@pytest.mark.parametrize("head", [False, True], ids=["", "lm_head"])
@pytest.mark.parametrize("new_tokens", [False, True], ids=["", "new_tokens"])
def test_merging_preserves_the_logits(base, head, new_tokens, tmp_path):
    """In memory, and after saving and loading with plain transformers."""
    model = adapted(base, head, new_tokens)
    ids = torch.tensor([[2, 10, 128 if new_tokens else 20, 30, 129 if new_tokens else 21, 31]])
    with torch.no_grad():
        expected = model(ids).logits
        merged = merge_adapter(model)
        merged.save_pretrained(tmp_path / "merged")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("excluded", [None, ["v_proj"], ".*v_proj"], ids=str)
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]], ids=str)
def test_a_vision_tower_has_no_adapter(tmp_path, targets, excluded):
    """DDP would wait for the gradients of weights that no text passes through."""
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = Gemma3Config(text_config=Gemma3TextConfig(**SIZES), vision_config=vision, mm_tokens_per_image=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = load_base(str(tmp_path), None, torch.float32, BY_DOCUMENT)
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if "vision" not in name and "multi_" not in name}
    adapted = add_adapter(model, LoraConfig(r=2, target_modules=targets, exclude_modules=excluded), [])
    token_loss_sum(adapted, PackingCollator(0)([DOCUMENTS])).backward()
    trained = {name: weight.grad for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert any("q_proj" in name for name in trained)
    assert any("v_proj" in name for name in trained) is (excluded is None)
    assert all(gradient is not None for gradient in trained.values())
