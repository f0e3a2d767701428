"""The loss: chunks of the head, compiled layers, and which weights get a gradient."""

import pytest
import torch
from peft import LoraConfig
from tests.helpers.losses import DOCUMENTS, loss_alone
from tests.helpers.small_models import SIZES, adapted
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig, HyperCLOVAXConfig, MistralConfig, Phi3Config

from fc_lightning.data.collator import PackingCollator
from fc_lightning.models import head_loss
from fc_lightning.models.attention import BY_DOCUMENT
from fc_lightning.models.loading import load_base
from fc_lightning.models.lora import add_adapter, add_token_rows, unwrap_peft
from fc_lightning.models.loss import token_loss_sum
from fc_lightning.models.peft_internals import frozen_head
from fc_lightning.models.preference_loss import Preference


def loss_and_gradients(model, batch, chunk) -> list[torch.Tensor]:
    model.zero_grad()
    loss = token_loss_sum(model, batch, chunk)
    (loss / 3).backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("attention", ["eager", BY_DOCUMENT])
@pytest.mark.parametrize(
    "config",
    [
        GraniteConfig(**SIZES, logits_scaling=8.0, embedding_multiplier=3.0),
        CohereConfig(**SIZES, logit_scale=0.25),
        HyperCLOVAXConfig(**SIZES, logits_scaling=0.5),
        MistralConfig(**SIZES),
        Phi3Config(**SIZES),
    ],
    ids=lambda config: config.model_type,
)
def test_the_loss_of_other_models_is_that_of_their_forward_pass(config, attention):
    """Scaled logits, and sliding windows in configurations that do not list the kinds of layers."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    expected = sum(loss_alone(model, document) for document in DOCUMENTS)
    loss = token_loss_sum(model, PackingCollator(0)([DOCUMENTS]))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_chunks_of_a_trained_head_change_neither_loss_nor_gradients(base, chunk):
    model = adapted(base, head=True)
    batch = PackingCollator(0)([DOCUMENTS])
    whole, chunked = (loss_and_gradients(model, batch, rows) for rows in (10_000, chunk))
    torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("new_tokens", [False, True], ids=["", "new_tokens"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_gradient_of_a_frozen_head_is_that_of_autograd(base, chunk, new_tokens, tied, monkeypatch):
    """In fp32, of every trained weight; new tokens are among the labels."""
    model = adapted(base, new_tokens=new_tokens, tied=tied)
    further = {"id": "d", "input_ids": [2, 128, 40, 129, 128], "supervised": [0, 5]} if new_tokens else DOCUMENTS[0]
    batch = PackingCollator(0)([[*DOCUMENTS, further]])
    actual = loss_and_gradients(model, batch, chunk)
    assert frozen_head(unwrap_peft(model).get_output_embeddings()) is not None
    monkeypatch.setattr("fc_lightning.models.loss.frozen_head", lambda head: None)
    expected = loss_and_gradients(model, batch, 1000)
    assert len(actual) == len(expected) > 7 + 2 * new_tokens
    for new, old in zip(actual, expected, strict=True):
        assert (new - old).norm() <= 2e-6 * old.norm()  # rounding, which the layers amplify: 0.5e-6 to 1.2e-6


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("compute", [head_loss._in_place, head_loss._loss_and_gradient, head_loss._compiled()])
def test_all_ways_to_compute_the_gradient_of_logits_are_autograds(compute, cap, weighted):
    """On a GPU one is compiled, and only the other one runs elsewhere."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 50, (7,), generator=generator)
    weights = torch.rand(7, generator=generator) if weighted else None
    logits = (20 * torch.randn(7, 50, generator=generator)).requires_grad_()
    capped = logits if cap is None else cap * torch.tanh(logits / cap)
    losses = torch.nn.functional.cross_entropy(capped, labels, reduction="none")
    expected = (losses if weights is None else losses * weights).sum()
    expected.backward()
    loss, gradient = compute(logits.detach().clone(), labels, cap, weights)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("saved", [None, ["lm_head", "embed_tokens"], ["lm_head"]], ids=str)
def test_a_bf16_base_trains_fp32_weights_without_autocast(base, saved):
    """Against plain forward passes of an fp32 base, within the precision of bf16."""
    losses = []
    for dtype in (torch.bfloat16, torch.float32):
        model = load_base(str(base), None, dtype, BY_DOCUMENT)
        add_token_rows(model, {} if saved else {128: [10, 11]})
        config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=saved)
        model = add_adapter(model, config, [] if saved else [128])
        losses.append(loss_and_gradients(model, PackingCollator(0)([DOCUMENTS]), 8)[0])
        trained = [p for p in model.parameters() if p.requires_grad]
        assert all(p.dtype == torch.float32 and p.grad is not None for p in trained)
    with torch.no_grad():
        expected = sum(loss_alone(model, document) for document in DOCUMENTS)
    assert losses[1].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses[0].item() == pytest.approx(expected.item(), rel=0.03)


def test_a_batch_without_labels_has_a_loss_of_zero_and_gradients(base):
    """A rank that has run out of data takes part in the backward pass."""
    loss, *gradients = loss_and_gradients(adapted(base), PackingCollator(0)([]), 4)
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("chunk", [4, 1000])
def test_weights_multiply_token_losses_and_their_gradients(base, chunk):
    """Against a plain sum over the logits of the whole model, one document at a time."""
    model = adapted(base, head=True)
    batch = PackingCollator(0)([DOCUMENTS])
    weights = torch.linspace(-0.5, 2.0, batch["num_supervised"])
    found = token_loss_sum(model, {**batch, "weights": weights}, chunk)
    found.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad()
    expected, position = torch.tensor(0.0), 0
    for document in DOCUMENTS:
        ids, spans = torch.tensor(document["input_ids"]), document["supervised"]
        log_probs = plain_logits(model, ids).log_softmax(-1)
        for first, last in zip(spans[::2], spans[1::2], strict=True):
            for place in range(max(first, 1), last):
                expected = expected - weights[position] * log_probs[place - 1, ids[place]]
                position += 1
    assert position == len(weights)
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    for mine, parameter in zip(gradients, (p for p in model.parameters() if p.requires_grad), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("chunk", [4, 1000])
def test_the_preference_loss_has_the_gradient_of_its_plain_formula(base, chunk):
    """The two-pass form against autograd through the logits of the whole model, unpacked."""
    model = adapted(base)
    pair = [DOCUMENTS[0], {**DOCUMENTS[1], "supervised": DOCUMENTS[1]["supervised"][:2]}]
    batch = PackingCollator(0)([pair])
    preference = Preference(weight=0.5, beta=3.0, margin=0.2)
    counts = [len(supervised_places(document)) for document in pair]
    side = torch.tensor([0] * counts[0] + [1] * counts[1])
    more = {"weights": (side == 0).float(), "pair_side": side, "num_pairs": 1}
    found = token_loss_sum(model, {**batch, **more}, chunk, preference)
    found.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad()
    sums = []
    for document in pair:
        ids = torch.tensor(document["input_ids"])
        log_probs = plain_logits(model, ids).log_softmax(-1)
        sums.append(torch.stack([log_probs[place - 1, ids[place]] for place in supervised_places(document)]).sum())
    margin = 3.0 * (sums[0] / counts[0] - sums[1] / counts[1]) - 0.2
    expected = -sums[0] + 0.5 * counts[0] * torch.log1p(torch.exp(-margin))
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    for mine, parameter in zip(gradients, (p for p in model.parameters() if p.requires_grad), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-3, atol=1e-4)


def supervised_places(document) -> list[int]:
    spans = document["supervised"]
    pairs = zip(spans[::2], spans[1::2], strict=True)
    return [place for first, last in pairs for place in range(max(first, 1), last)]


def plain_logits(model, ids: torch.Tensor) -> torch.Tensor:
    """Logits of one document alone, without the project's own loss, ``(length, vocabulary)``."""
    whole = [(0, 0, len(ids))]
    return model(input_ids=ids[None], use_cache=False, documents=whole).logits[0].float()


def test_compiled_layers_have_the_same_gradients(base):
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


def test_only_the_adapter_and_new_rows_train(base):
    model = adapted(base)
    token_loss_sum(model, PackingCollator(0)([DOCUMENTS])).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "trainable_tokens_delta" in name for name in trained)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters() if parameter.requires_grad)
