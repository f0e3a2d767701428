"""The loss: chunks of the head, compiled layers, and which weights get a gradient."""

import pytest
import torch
from tests.helpers.losses import DOCUMENTS
from tests.helpers.small_models import adapted

from fc_lightning.data.collator import PackingCollator
from fc_lightning.models.loss import token_loss_sum


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_chunks_of_the_head_change_neither_loss_nor_gradients(base, chunk):
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
