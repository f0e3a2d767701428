"""Block masks against masks of each pair of positions, and flex attention against eager attention."""

import random

import pytest
import torch
from tests.helpers.losses import DOCUMENTS
from tests.helpers.small_models import SIZES
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import create_block_mask
from transformers import AutoModelForCausalLM, MistralConfig

from fc_lightning.data.collator import PackingCollator
from fc_lightning.models.flex_masks import _document_numbers, block_mask
from fc_lightning.models.loading import load_base
from fc_lightning.models.loss import token_loss_sum


def collated(lengths_of_rows, pad_to=0):
    packs = [
        [{"id": str(n), "input_ids": [2] * length, "supervised": []} for n, length in enumerate(lengths)]
        for lengths in lengths_of_rows
    ]
    return PackingCollator(0, pad_to=pad_to)(packs)


@pytest.mark.parametrize("window", [None, 1, 100, 128, 129, 256, 300])
def test_blocks_are_those_of_a_mask_of_each_pair(window):
    generator = random.Random(window or 0)
    for _ in range(10):
        rows = [[generator.choice([1, 60, 127, 128, 129, 300, 500]) for _ in range(3)] for _ in range(2)]
        documents = _document_numbers(collated(rows, pad_to=generator.choice([0, 1664])))
        length = documents.shape[1]

        def allowed(row, head, query, key, documents=documents, reach=window or length):
            return (query >= key) & (documents[row, query] == documents[row, key]) & (query - key < reach)

        actual = block_mask(documents, window, torch.device("cpu"))
        expected = create_block_mask(allowed, len(rows), None, length, length, device="cpu")
        torch.testing.assert_close(actual.to_dense() > 0, expected.to_dense() > 0)
        pairs = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(length), torch.arange(length), indexing="ij"))
        assert (actual.mask_mod(pairs[0], 0, *pairs[1:]) == allowed(pairs[0], 0, *pairs[1:])).all()
        # A block is called full only if each of its pairs attends.
        dense = allowed(pairs[0], 0, *pairs[1:])
        for row in range(2):
            for query in range(length // 128):
                count = int(actual.full_kv_num_blocks[row, 0, query])
                for key in actual.full_kv_indices[row, 0, query, :count].tolist():
                    assert dense[row, query * 128 : query * 128 + 128, key * 128 : key * 128 + 128].all()


@pytest.mark.parametrize("packs", [[[0, 1, 2]], [[1], [], [2, 0]]], ids=str)
def test_flex_attention_has_the_loss_and_gradients_of_eager_attention(base, packs, monkeypatch):
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)  # its eager fallback has a backward pass
    batch = PackingCollator(0)([[DOCUMENTS[index] for index in pack] for pack in packs])
    results = []
    for attention in ("eager", "flex_attention"):
        model = load_base(str(base), None, torch.float32, "eager")
        model.config._attn_implementation = attention
        with torch.compiler.set_stance("force_eager"):
            loss = token_loss_sum(model, batch)
            loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


def test_a_model_whose_layers_all_slide(monkeypatch):
    """Mistral's configuration has a window, but does not list the kinds of layers."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MistralConfig(**SIZES), attn_implementation="eager")
    batch = PackingCollator(0)([DOCUMENTS])
    expected = token_loss_sum(model, batch)
    model.config._attn_implementation = "flex_attention"
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(token_loss_sum(model, batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_compiled_layers_take_the_mask_of_each_batch(base, monkeypatch):
    """Masks are closures over a batch's documents; a graph that had kept those of the first batch would be wrong."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    models = [load_base(str(base), None, torch.float32, "eager") for _ in range(2)]
    models[1].config._attn_implementation = "flex_attention"
    for layer in models[1].get_decoder().layers:
        layer.compile(dynamic=False, backend="aot_eager")
    generator = random.Random(0)
    for _ in range(4):
        lengths = [generator.choice([20, 60, 100, 127]) for _ in range(4)]
        documents = [
            {"id": "", "input_ids": [2, *generator.choices(range(3, 120), k=length - 1)], "supervised": [1, length]}
            for length in lengths
        ]
        batch = PackingCollator(0, pad_to=512)([documents])
        results = []
        for model in models:
            model.zero_grad()
            loss = token_loss_sum(model, batch)
            loss.backward()
            results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
        torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-3)
