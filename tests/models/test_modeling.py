"""The model against transformers and PEFT as they come: attention by document, lean adapters, the loss, merging."""

import copy
import itertools
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from tests.helpers.losses import DOCUMENTS, loss_alone
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
)
from transformers.masking_utils import flash_attention_mask

from fc_lightning.data.collator import PackingCollator
from fc_lightning.models.attention import BY_DOCUMENT, choose_attention
from fc_lightning.models.loading import load_base
from fc_lightning.models.lora import add_adapter, add_token_rows, use_fast_forward
from fc_lightning.models.loss import token_loss_sum

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,  # shorter than the documents below, so that it matters
    "vocab_size": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}


@pytest.fixture(params=["gemma2", "gemma3"])
def base(request, tmp_path) -> Path:
    """A folder with a random model whose attention has both kinds of layers."""
    torch.manual_seed(0)
    if request.param == "gemma2":
        model = AutoModelForCausalLM.from_config(Gemma2Config(**SIZES, attn_logit_softcapping=2.0))
    else:
        kinds = ["sliding_attention", "full_attention"]
        model = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, layer_types=kinds))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # large, so that caps and masks make a difference
    model.save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


@pytest.mark.parametrize(("attention", "block"), [(BY_DOCUMENT, 512), (BY_DOCUMENT, 5), ("eager", 512)])
@pytest.mark.parametrize("packs", [[[0, 1, 2]], [[0], [2, 1]], [[1], [], [2, 0]]], ids=str)
def test_packed_documents_have_the_loss_of_separate_ones(base, attention, block, packs, monkeypatch):
    monkeypatch.setattr("fc_lightning.models.attention._BLOCK", block)
    model = load_base(str(base), None, torch.float32, attention)
    plain = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    batch = PackingCollator(0)([[DOCUMENTS[index] for index in pack] for pack in packs])
    expected = sum(loss_alone(plain, DOCUMENTS[index]) for pack in packs for index in pack)
    torch.testing.assert_close(token_loss_sum(model, batch), expected, rtol=1e-5, atol=1e-5)


def by_ends(module, query, key, value, attention_mask, *, cu_seq_lens_q, cu_seq_lens_k, max_length_q, **settings):
    """What a flash kernel computes for sequences of varying lengths, from its own arguments, one sequence at a time."""
    assert attention_mask is None
    assert max_length_q == max(cu_seq_lens_q.diff())
    assert cu_seq_lens_q.dtype == torch.int32
    rows, heads, length, width = query.shape
    flat = [part.transpose(1, 2).reshape(rows * length, -1, width) for part in (query, key, value)]
    out = torch.empty_like(flat[0])
    for start, end in itertools.pairwise(cu_seq_lens_q.tolist()):
        q, k, v = (part[start:end].transpose(0, 1) for part in flat)
        k, v = (part.repeat_interleave(heads // part.shape[0], 0) for part in (k, v))
        scores = q @ k.mT * settings["scaling"]
        if (cap := settings.get("softcap")) is not None:
            scores = cap * torch.tanh(scores / cap)
        seen = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        if (window := settings.get("sliding_window")) is not None:
            seen = seen.triu(1 - window)
        out[start:end] = (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(0, 1)
    return out.view(rows, length, heads, width), None


@pytest.mark.parametrize("packs", [[[0, 1, 2]], [[1], [], [2, 0]]], ids=str)
def test_flash_kernels_are_told_where_documents_end(base, packs):
    AttentionInterface.register("flash_by_hand", by_ends)
    AttentionMaskInterface.register("flash_by_hand", flash_attention_mask)
    model = load_base(str(base), None, torch.float32, "eager")
    model.config._attn_implementation = "flash_by_hand"  # loaded under this name, it would be looked for on the hub
    plain = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    batch = PackingCollator(0)([[DOCUMENTS[index] for index in pack] for pack in packs])
    expected = sum(loss_alone(plain, DOCUMENTS[index]) for pack in packs for index in pack)
    torch.testing.assert_close(token_loss_sum(model, batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("device", "mixed", "flash", "cap", "chosen"),
    [
        ("cpu", True, True, 50.0, BY_DOCUMENT),
        ("cpu", False, False, None, BY_DOCUMENT),
        ("cuda", True, True, 50.0, "flash_attention_2"),
        ("cuda", True, True, None, "flash_attention_2"),
        ("cuda", False, True, None, "sdpa"),
        ("cuda", True, False, 50.0, "flex_attention"),
        ("cuda", True, False, None, "sdpa"),
    ],
)
def test_which_attention_is_chosen(device, mixed, flash, cap, chosen, monkeypatch):
    monkeypatch.setattr("fc_lightning.models.loading.is_flash_attn_2_available", lambda: flash)
    config = Gemma2Config(**SIZES, attn_logit_softcapping=cap)
    assert choose_attention(config, torch.device(device), mixed)[0] == chosen


def test_another_document_changes_nothing(base):
    """Only document b is supervised; whatever a's tokens are, its loss is the same to the last bit."""
    model = load_base(str(base), None, torch.float32, BY_DOCUMENT)
    losses = set()
    for token in (10, 70):
        other = {"id": "a", "input_ids": [2, *[token] * 17], "supervised": []}
        losses.add(float(token_loss_sum(model, PackingCollator(0)([[other, DOCUMENTS[1], other]]))))
    assert len(losses) == 1


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_chunks_of_the_head_change_neither_loss_nor_gradient(base, chunk):
    model = adapted(base, head=True)
    batch = PackingCollator(0)([DOCUMENTS])
    gradients = []
    for rows in (10_000, chunk):
        model.zero_grad()
        loss = token_loss_sum(model, batch, rows)
        loss.backward()
        gradients.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
    for whole, chunked in zip(*gradients, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", [BY_DOCUMENT, "eager"])
def test_packed_documents_have_the_logits_of_separate_ones(base, attention):
    packed = load_base(str(base), None, torch.float32, attention)
    plain = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    batch = PackingCollator(0)([DOCUMENTS])
    extra = {"documents": batch["documents"]} if attention == BY_DOCUMENT else {}
    with torch.no_grad():
        logits = packed(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False, **extra
        ).logits
        alone = [plain(torch.tensor([document["input_ids"]])).logits for document in DOCUMENTS]
    torch.testing.assert_close(logits, torch.cat(alone, dim=1), rtol=1e-5, atol=1e-5)


def test_compiled_layers_train_as_plain_ones(base):
    gradients = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = adapted(base)
        for layer in model.get_base_model().get_decoder().layers:
            if compiled:
                layer.compile(backend="aot_eager")
        loss = token_loss_sum(model, PackingCollator(0)([DOCUMENTS]))
        loss.backward()
        gradients.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def adapted(base: Path, head: bool = False, new_tokens: bool = True, dropout: float = 0.0) -> PeftModel:
    """A model with an adapter whose weights are far from their start."""
    model = load_base(str(base), None, torch.float32, BY_DOCUMENT)
    pieces = {128: [10, 11], 129: [12, 13, 14]} if new_tokens else {}
    add_token_rows(model, pieces)
    targets = [*PROJECTIONS, "lm_head"] if head else PROJECTIONS
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=targets)
    model = add_adapter(model, config, list(pieces))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def test_a_new_row_starts_as_the_mean_of_its_pieces(base):
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
def test_lean_layers_are_pefts_own(base, head, new_tokens):
    """The same logits and gradients with PEFT's forward passes."""
    lean = adapted(base, head, new_tokens)
    original = copy.deepcopy(lean)
    for module in original.modules():
        module.__dict__.pop("forward", None)
    ids = torch.tensor([[2, 10, 128 if new_tokens else 20, 30, 129 if new_tokens else 21, 31]])
    results = []
    for model in (lean, original):
        logits = model(ids).logits
        logits.square().mean().backward()
        results.append([logits.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", [False, True], ids=["", "lm_head"])
@pytest.mark.parametrize("new_tokens", [False, True], ids=["", "new_tokens"])
def test_the_merged_model_is_the_adapted_one(base, head, new_tokens, tmp_path):
    """Also after saving and loading both with plain PEFT and transformers."""
    model = adapted(base, head, new_tokens)
    ids = torch.tensor([[2, 10, 128 if new_tokens else 20, 30, 129 if new_tokens else 21, 31]])
    with torch.no_grad():
        expected = model(ids).logits
        merged = model.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_only_adapter_and_new_rows_train(base):
    model = adapted(base)
    token_loss_sum(model, PackingCollator(0)([DOCUMENTS])).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "trainable_tokens_delta" in name for name in trained)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters() if parameter.requires_grad)


def test_make_lean_leaves_other_adapters_alone(base):
    model = load_base(str(base), None, torch.float32, BY_DOCUMENT)
    model = add_adapter(model, LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]), [])
    use_fast_forward(model)
    assert not any("forward" in module.__dict__ for module in model.modules() if "q_proj" in type(module).__name__)
    assert model(torch.tensor([[2, 3]])).logits.isfinite().all()
