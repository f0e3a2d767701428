"""Attention by document and the arguments of flash kernels, against plain transformers on separate documents."""

import itertools

import pytest
import torch
from tests.helpers.losses import DOCUMENTS, loss_alone
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.masking_utils import flash_attention_mask

import fc_lightning.models.attention as attention_module
from fc_lightning.data.collator import PackingCollator
from fc_lightning.models.attention import BY_DOCUMENT, attention_by_document, choose_attention
from fc_lightning.models.loading import load_base
from fc_lightning.models.loss import token_loss_sum


@pytest.mark.parametrize(("attention", "block"), [(BY_DOCUMENT, 512), (BY_DOCUMENT, 5), ("eager", 512)])
@pytest.mark.parametrize("packs", [[[0, 1, 2]], [[0], [2, 1]], [[1], [], [2, 0]]], ids=str)
def test_packed_documents_have_the_loss_of_separate_ones(base, attention, block, packs, monkeypatch):
    monkeypatch.setattr("fc_lightning.models.attention._BLOCK", block)
    model = load_base(str(base), None, torch.float32, attention)
    plain = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    batch = PackingCollator(0)([[DOCUMENTS[index] for index in pack] for pack in packs])
    expected = sum(loss_alone(plain, DOCUMENTS[index]) for pack in packs for index in pack)
    torch.testing.assert_close(token_loss_sum(model, batch), expected, rtol=1e-5, atol=1e-5)


def flash_by_hand(module, query, key, value, attention_mask, *, cu_seq_lens_q, cu_seq_lens_k, max_length_q, **settings):
    """What a flash kernel computes from its own arguments, one sequence at a time."""
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
def test_flash_kernels_get_the_ends_of_the_documents(base, packs):
    AttentionInterface.register("flash_by_hand", flash_by_hand)
    AttentionMaskInterface.register("flash_by_hand", flash_attention_mask)
    model = load_base(str(base), None, torch.float32, "eager")
    model.config._attn_implementation = "flash_by_hand"  # loading it by this name would look for a kernel on the Hub
    plain = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    batch = PackingCollator(0)([[DOCUMENTS[index] for index in pack] for pack in packs])
    expected = sum(loss_alone(plain, DOCUMENTS[index]) for pack in packs for index in pack)
    torch.testing.assert_close(token_loss_sum(model, batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("device", "mixed", "flash", "chosen"),
    [
        ("cpu", True, True, BY_DOCUMENT),
        ("cpu", False, False, BY_DOCUMENT),
        ("cuda", True, True, "flash_attention_2"),
        ("cuda", False, True, "flex_attention"),
        ("cuda", True, False, "flex_attention"),
    ],
)
def test_which_attention_is_chosen(device, mixed, flash, chosen, monkeypatch):
    monkeypatch.setattr("fc_lightning.models.attention.is_flash_attn_2_available", lambda: flash)
    assert choose_attention(torch.device(device), mixed)[0] == chosen


def test_a_document_does_not_depend_on_the_others_of_its_pack(base):
    """Only document b is supervised: its loss is bit-equal whatever the tokens of a are."""
    model = load_base(str(base), None, torch.float32, BY_DOCUMENT)
    losses = set()
    for token in (10, 70):
        other = {"id": "a", "input_ids": [2, *[token] * 17], "supervised": []}
        losses.add(float(token_loss_sum(model, PackingCollator(0)([[other, DOCUMENTS[1], other]]))))
    assert len(losses) == 1


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize(("window", "cap"), [(None, None), (3, None), (None, 1.5), (2, 0.7)])
def test_gradients_are_those_of_finite_differences(key_heads, window, cap, monkeypatch):
    monkeypatch.setattr("fc_lightning.models.attention._BLOCK", 3)
    monkeypatch.setattr("fc_lightning.models.attention._MULTIPLE", 2)
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, 7, 3) for heads in (4, key_heads, key_heads)]
    inputs = [torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True) for shape in shapes]
    settings = {"sliding_window": window, "softcap": cap, "scaling": 0.9}
    documents = [(0, 0, 4), (0, 4, 7), (1, 0, 7)]

    def attend(query, key, value):
        return attention_by_document(None, query, key, value, None, documents=documents, **settings)[0]

    assert torch.autograd.gradcheck(attend, inputs)


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


@pytest.mark.parametrize("block", [4, 512])
def test_blocks_of_a_prompt_after_a_cached_beginning_have_all_keys_that_they_reach(base, block, monkeypatch):
    """Rows of different lengths, padded on the left, in two pieces, as transformers' eager attention reads them."""
    monkeypatch.setattr("fc_lightning.models.attention._BLOCK", block)
    ids = torch.arange(5, 47).view(2, 21)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    logits = []
    for attention in (BY_DOCUMENT, "eager"):
        model = load_base(str(base), None, torch.float32, attention)
        with torch.no_grad():
            first = model(input_ids=ids[:, :8], attention_mask=mask[:, :8], use_cache=True)
            rest = model(input_ids=ids[:, 8:], attention_mask=mask, past_key_values=first.past_key_values)
        logits.append(torch.cat([first.logits[:1].flatten(), rest.logits[mask[:, 8:].bool()].flatten()]))
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 40])
def test_documents_of_all_lengths_have_few_shapes(monkeypatch, window):
    shapes = set()
    softmax = attention_module._softmax

    def record(scores, *rest):
        shapes.add(scores.shape[1:])
        return softmax(scores, *rest)

    monkeypatch.setattr(attention_module, "_softmax", record)
    lengths = range(1, 129)
    ends = list(itertools.accumulate(lengths))
    documents = [(0, end - length, end) for length, end in zip(lengths, ends, strict=True)]
    query, key, value = (torch.randn(1, heads, ends[-1], 8) for heads in (2, 1, 1))
    attention_by_document(None, query, key, value, None, sliding_window=window, documents=documents)
    assert shapes == {(2 * length, length) for length in (32, 64, 96, 128)}


def test_attention_by_document_runs_without_autocast(monkeypatch):
    """On a GPU, autocast would compute the softmax in fp32, and the gradient would be a product of two precisions."""
    apply, seen = attention_module._DocumentAttention.apply, []

    def watched(query, *rest):
        seen.append((query.dtype, torch.is_autocast_enabled("cpu")))
        return apply(query, *rest)

    monkeypatch.setattr(attention_module._DocumentAttention, "apply", watched)
    query = torch.zeros(1, 2, 8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        attention_by_document(None, query, query, query, None, documents=[(0, 0, 8)])
    assert seen == [(torch.bfloat16, False)]
