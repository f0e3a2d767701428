"""The loss: chunks of the head, compiled layers, and which weights get a gradient."""

import pytest
import torch
from tests.helpers.losses import DOCUMENTS
from tests.helpers.small_models import adapted

from fc_lightning.data.collator import PackingCollator
from fc_lightning.models.lora import unwrap_peft
from fc_lightning.models.loss import token_loss_sum
from fc_lightning.models.peft_internals import frozen_head


def loss_and_gradients(model, batch, chunk) -> list[torch.Tensor]:
    model.zero_grad()
    loss = token_loss_sum(model, batch, chunk)
    (loss / 3).backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]


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
        assert (new - old).norm() <= 1e-6 * old.norm()


def test_a_batch_without_labels_has_a_loss_of_zero_and_gradients(base):
    """A rank that has run out of data takes part in the backward pass."""
    loss, *gradients = loss_and_gradients(adapted(base), PackingCollator(0)([]), 4)
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients)


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
