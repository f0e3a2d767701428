"""Operations of a training step against those that torch counts."""

import pytest
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from fc_lightning.data.collator import PackingCollator
from fc_lightning.models.flops import TrainingCost
from fc_lightning.models.lora import add_adapter, untie_head
from fc_lightning.models.loss import token_loss_sum


def test_full_training_takes_the_operations_that_torch_counts():
    model = AutoModelForCausalLM.from_pretrained("tests/models/tiny_gemma2", attn_implementation="eager")
    ids = list(range(10, 60))
    batch = PackingCollator(0)([[{"id": "a", "input_ids": ids, "supervised": [0, 50]}]])
    with FlopCounterMode(display=False) as counter:
        token_loss_sum(model, batch, chunk=100).backward()
    # Eager attention computes all pairs of positions, the masked ones too.
    pairs = 12 * 2 * 32 * (50 * 50 - 50 * 51 / 2)
    assert TrainingCost.of_model(model).flops(batch) + pairs == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_a_trained_copy_of_the_head_is_counted_once():
    model = AutoModelForCausalLM.from_pretrained("tests/models/tiny_gemma2")
    untie_head(model)
    head = model.get_output_embeddings().weight.numel()
    adapted = add_adapter(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]), [])
    assert TrainingCost.of_model(adapted).per_supervised_token == 6 * head


def test_frozen_weights_and_unsupervised_positions_take_fewer_operations():
    model = AutoModelForCausalLM.from_pretrained("tests/models/tiny_gemma2")
    ids = list(range(10, 60))
    all_, few = (PackingCollator(0)([[{"id": "a", "input_ids": ids, "supervised": [start, 50]}]]) for start in (0, 40))
    head = model.get_output_embeddings().weight.numel()
    assert TrainingCost.of_model(model).flops(all_) - TrainingCost.of_model(model).flops(few) == 39 * 6 * head
    trained = TrainingCost.of_model(model).flops(all_)
    model.requires_grad_(False)
    matrices = [weight.numel() for weight in model.model.layers.parameters() if weight.dim() == 2]
    assert trained - TrainingCost.of_model(model).flops(all_) == 2 * (50 * sum(matrices) + 49 * head)
