"""New-token rows and adapters: their initial values, and that merging preserves the logits."""

import pytest
import torch
from tests.helpers.small_models import adapted
from transformers import AutoModelForCausalLM

from fc_lightning.models.attention import BY_DOCUMENT
from fc_lightning.models.loading import load_base
from fc_lightning.models.lora import add_token_rows
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
