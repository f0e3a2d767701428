"""Small random models."""

from pathlib import Path

import pytest
import torch
from tests.helpers.small_models import SIZES
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3ForCausalLM, Gemma3TextConfig


@pytest.fixture(params=["gemma2", "gemma3"])
def base(request, tmp_path) -> Path:
    """A folder with a random model that has sliding and full attention layers."""
    torch.manual_seed(0)
    if request.param == "gemma2":
        model = AutoModelForCausalLM.from_config(Gemma2Config(**SIZES, attn_logit_softcapping=2.0))
    else:
        kinds = ["sliding_attention", "full_attention"]
        model = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, layer_types=kinds))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # large, so that caps and masks matter
    model.save_pretrained(tmp_path / request.param)
    return tmp_path / request.param
