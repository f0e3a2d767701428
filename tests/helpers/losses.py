"""Small encoded documents, and their loss computed without packing."""

import torch
import torch.nn.functional as F

DOCUMENTS = [
    {"id": "a", "input_ids": [2, *range(10, 27)], "supervised": [9, 14, 16, 18]},
    {"id": "b", "input_ids": [2, 30, 31, 32, 33], "supervised": [2, 5]},
    {"id": "c", "input_ids": [2, *range(40, 53)], "supervised": [0, 14]},
]


def loss_alone(model, document) -> torch.Tensor:
    """The summed loss of one document by transformers' plain forward pass."""
    ids = torch.tensor([document["input_ids"]])
    losses = F.cross_entropy(model(ids).logits[0, :-1].float(), ids[0, 1:], reduction="none")
    spans = zip(document["supervised"][::2], document["supervised"][1::2], strict=True)
    return sum((losses[max(start, 1) - 1 : end - 1].sum() for start, end in spans), torch.tensor(0.0))
