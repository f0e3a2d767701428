"""The throughput callback against counts made by hand."""

import csv

import pytest
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from fc_lightning.data.collator import PackingCollator
from fc_lightning.models.flops import training_flops
from fc_lightning.models.loss import token_loss_sum


def test_what_is_logged_fits_together(run):
    overlay = "--trainer.callbacks=[{class_path: fc_lightning.callbacks.Throughput, init_args: {peak_tflops: 1}}]"
    folder = run("fit", overlay, "--trainer.log_every_n_steps=2", "--trainer.max_epochs=2", "--data.batch_size=2")
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    (row,) = [row for row in rows if row["train/tokens_per_second"]]
    value = {name.removeprefix("train/"): float(text) for name, text in row.items() if text}
    tokens = value["tokens_per_second"] * 2 * value["step_seconds"]
    assert tokens == pytest.approx(2 * 4636)  # both epochs of the 32 rows
    # Three packs in rows of 2,048 or less: two rows in one micro-batch, one in the other.
    assert 0 <= value["padding"] < 0.5
    assert 0 < value["supervised_tokens_per_second"] < value["tokens_per_second"]
    assert 0 < value["data_seconds"] < value["step_seconds"]
    assert 0 < value["mfu"] < 1
    assert value["peak_memory_gb"] > 0.1
    assert any(row.get("val/seconds") for row in rows)


def test_the_operations_of_full_training_are_those_that_torch_counts():
    model = AutoModelForCausalLM.from_pretrained("tests/models/tiny_gemma2", attn_implementation="eager")
    ids = list(range(10, 60))
    batch = PackingCollator(0)([[{"id": "a", "input_ids": ids, "supervised": [0, 50]}]])
    with FlopCounterMode(display=False) as counter:
        token_loss_sum(model, batch, chunk=100).backward()
    # Eager attention computes all pairs of positions, those that do not see each other too.
    pairs = 12 * 2 * 32 * (50 * 50 - 50 * 51 / 2)
    assert training_flops(model, batch) + pairs == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_frozen_weights_and_unsupervised_positions_need_less():
    model = AutoModelForCausalLM.from_pretrained("tests/models/tiny_gemma2")
    ids = list(range(10, 60))
    all_, few = (PackingCollator(0)([[{"id": "a", "input_ids": ids, "supervised": [start, 50]}]]) for start in (0, 40))
    head = model.get_output_embeddings().weight.numel()
    assert training_flops(model, all_) - training_flops(model, few) == 39 * 6 * head
    trained = training_flops(model, all_)
    model.requires_grad_(False)
    matrices = [weight.numel() for weight in model.model.layers.parameters() if weight.dim() == 2]
    assert trained - training_flops(model, all_) == 2 * (50 * sum(matrices) + 49 * head)
