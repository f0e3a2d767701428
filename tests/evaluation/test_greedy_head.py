"""The likeliest token by rounded weights and a second look, against scores in double precision."""

import pytest
import torch
from torch import nn

from fc_lightning.evaluation.greedy_head import GreedyHead


@pytest.mark.parametrize("scale", [0.05, 1.0, 40.0])
def test_the_best_of_close_scores_is_found(scale):
    torch.manual_seed(0)
    head = nn.Linear(32, 500, bias=False)
    hidden = torch.randn(40, 32) * scale
    with torch.no_grad():
        # Near copies of the best row of each state: rounding alone cannot tell them from it.
        best = (hidden @ head.weight.T).argmax(1)
        head.weight[:40] = head.weight[best] + torch.randn(40, 32) * 1e-4
    scores = hidden.double() @ head.weight.detach().double().T
    rounded = hidden.bfloat16() @ head.weight.detach().bfloat16().T
    assert (rounded.argmax(1) != scores.argmax(1)).any()
    assert GreedyHead.of(head).best(hidden).tolist() == scores.argmax(1).tolist()


def test_a_state_for_which_all_tokens_are_close_is_computed_in_full(monkeypatch):
    monkeypatch.setattr("fc_lightning.evaluation.greedy_head._MAX_CANDIDATES", 2)
    torch.manual_seed(0)
    head, hidden = nn.Linear(32, 500, bias=False), torch.randn(3, 32)
    assert GreedyHead.of(head).best(hidden).tolist() == head(hidden).argmax(1).tolist()


@pytest.mark.parametrize("head", [nn.Linear(4, 4), nn.Linear(4, 4, bias=False).bfloat16(), nn.Identity()], ids=repr)
def test_other_heads_are_computed_by_the_model(head):
    assert GreedyHead.of(head) is None


@pytest.mark.parametrize("size", [64, 70, 3])
def test_the_last_token_can_be_the_best(size):
    torch.manual_seed(0)
    head, hidden = nn.Linear(8, size, bias=False), torch.randn(5, 8)
    with torch.no_grad():
        head.weight[-1] = 10 * hidden[2]
    expected = (hidden.double() @ head.weight.detach().double().T).argmax(1)
    assert expected[2] == size - 1
    assert GreedyHead.of(head).best(hidden).tolist() == expected.tolist()
