"""Preference losses, packed, against plain ones: each document run by itself, log-probabilities gathered one by one."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from fc_lightning.data.collator import PackingCollator
from fc_lightning.models.preference_loss import Preference, document_log_probs, simpo_losses

TINY = "tests/models/tiny_gemma2"
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(TINY, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def documents() -> list[dict]:
    """Three pairs of unequal lengths; each document has a prompt and two supervised ranges."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number, length in enumerate((23, 30, 17, 12, 40, 21)):
        ids = torch.randint(5, 250, (length,), generator=generator).tolist()
        spans = [length // 3, length // 2, length // 2 + 2, length]
        found.append({"id": str(number), "input_ids": ids, "supervised": spans})
    return found


def plain_log_prob(model, document) -> tuple[float, int]:
    """The summed log-probability of a document's supervised tokens, token by token."""
    logits = model(torch.tensor([document["input_ids"]])).logits[0].double()
    spans = document["supervised"]
    places = [place for first, last in zip(spans[::2], spans[1::2], strict=True) for place in range(first, last)]
    total = 0.0
    for place in places:
        row = logits[place - 1]
        total += (row[document["input_ids"][place]] - torch.logsumexp(row, 0)).item()
    return total, len(places)


def packed_log_probs(model, documents, shuffled: bool = False):
    """The same from one packed batch."""
    order = [3, 0, 5, 1, 4, 2] if shuffled else list(range(len(documents)))
    packs = [[documents[number] for number in order[:4]], [documents[number] for number in order[4:]]]
    batch = PackingCollator(pad_token_id=0)(packs)
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    places = batch["supervised_index"]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1)[places].float(), batch["labels"].flatten()[places], reduction="none"
    )
    length = batch["input_ids"].shape[1]
    number_at = torch.full((2 * length,), -1)
    for number, (row, start, end) in zip(order, batch["documents"], strict=False):  # padding comes last
        number_at[row * length + start : row * length + end] = number
    return losses, *document_log_probs(losses, number_at[places], len(documents))


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value))


@pytest.mark.parametrize("shuffled", [False, True])
def test_packed_log_probabilities_are_those_of_each_document_alone(model, documents, shuffled):
    with torch.no_grad():
        _, log_probs, counts = packed_log_probs(model, documents, shuffled)
        plain = [plain_log_prob(model, document) for document in documents]
    assert counts.tolist() == [count for _, count in plain]
    for found, (expected, _) in zip(log_probs.tolist(), plain, strict=True):
        assert found == pytest.approx(expected, rel=TOLERANCE)


def test_the_loss_of_pairs_is_that_of_the_plain_formula(model, documents):
    with torch.no_grad():
        losses, log_probs, counts = packed_log_probs(model, documents)
        plain = [plain_log_prob(model, document) for document in documents]
    expected, total = [], 0.0
    for pair in range(3):
        (chosen, n_chosen), (rejected, n_rejected) = plain[2 * pair], plain[2 * pair + 1]
        expected.append(-log_sigmoid(2.5 * (chosen / n_chosen - rejected / n_rejected) - 0.7))
        total += -chosen + 0.3 * n_chosen * expected[-1]
    assert simpo_losses(log_probs, counts, 2.5, 0.7).tolist() == pytest.approx(expected, rel=TOLERANCE)
    sides = torch.cat([torch.full((int(count),), side) for side, count in enumerate(counts)])
    weights = (sides % 2 == 0).float()
    found = Preference(weight=0.3, beta=2.5, margin=0.7)(losses, weights, sides, 3)
    assert found.item() == pytest.approx(total, rel=TOLERANCE)


def test_the_gradient_raises_the_chosen_and_lowers_the_rejected_turn():
    losses, sides = torch.tensor([0.5, 0.7, 0.2, 0.9, 0.4]), torch.tensor([0, 0, 1, 1, -1])
    loss, derivative = Preference().gradient(losses, torch.zeros(5), sides, 1)
    assert (derivative[:2] > 0).all()  # a smaller token loss of the chosen turn lowers the loss
    assert (derivative[2:4] < 0).all()
    assert derivative[4] == 0
    step = 1e-3
    for token in range(5):
        moved = losses.clone()
        moved[token] += step
        slope = (Preference()(moved, torch.zeros(5), sides, 1) - loss) / step
        assert slope.item() == pytest.approx(derivative[token].item(), abs=2e-3)


def test_a_document_without_supervised_tokens_has_log_probability_zero():
    log_probs, counts = document_log_probs(torch.tensor([0.5]), torch.tensor([0]), 2)
    assert log_probs.tolist() == [-0.5, 0.0]
    assert counts.tolist() == [1.0, 0.0]
    assert torch.isfinite(simpo_losses(log_probs, counts, 2.0, 1.0)).all()
