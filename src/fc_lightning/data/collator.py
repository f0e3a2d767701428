"""Collation: packs of documents become the batch of tensors that a model trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import torch

IGNORE = -100


class Document(TypedDict):
    """One encoded conversation.

    ``supervised`` are half-open ranges of token indices, flat: ``[start, end, start, end, …]``. ``parts`` says what
    each supervised token is, see :func:`fc_lightning.chat_template.token_parts.supervised_parts`.
    """

    id: str
    input_ids: list[int]
    supervised: list[int]
    parts: NotRequired[list[int]]


class Batch(TypedDict):
    """One micro-batch of ``rows`` packs, padded to the longest, ``length`` tokens.

    Labels are already shifted: the label at a position is the next token of the same conversation if that token is
    supervised, and -100 otherwise. The counts are Python numbers, so that reading them does not synchronize the device.

    Layout of one row (documents ``a`` and ``b``, padding ``.``)::

        input_ids     a0 a1 a2 a3 b0 b1 b2  .  .
        position_ids   0  1  2  3  0  1  2  0  1
        labels         -  - a3  -  - b2  -  -  -
    """

    input_ids: torch.Tensor  # (rows, length)
    position_ids: torch.Tensor  # (rows, length), from 0 in each document
    labels: torch.Tensor  # (rows, length)
    supervised_index: torch.Tensor  # (num_supervised,), flat indices of labelled positions
    documents: list[tuple[int, int, int]]  # (row, start, end) of each document and of the padding
    num_supervised: int
    num_tokens: int
    ids: list[list[str]]
    weights: NotRequired[torch.Tensor]  # (num_supervised,), of the tokens in the loss
    total_weight: NotRequired[float]  # their sum


@dataclass(frozen=True)
class PackingCollator:
    """Collates packs of documents into a batch.

    Args:
        pad_token_id: Fills a row after its last document. Padding is a separate document: nothing attends to it.
        pad_to: Length that rows are padded to; 0 for the longest row of the batch.
        weights: Weight of each part of a turn in the loss; None weights all tokens alike.
    """

    pad_token_id: int
    pad_to: int = 0
    weights: tuple[float, ...] | None = None

    def __call__(self, packs: Sequence[Sequence[Any]]) -> Batch:
        """Collate packs of documents.

        Without packs the batch is one padded row without labels, for a rank that has run out of data.
        """
        packs = packs or [[]]
        lengths = [sum(len(document["input_ids"]) for document in pack) for pack in packs]
        shape = (len(packs), max(self.pad_to, *lengths, 1))
        input_ids = torch.full(shape, self.pad_token_id)
        position_ids = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORE)
        documents: list[tuple[int, int, int]] = []
        for row, pack in enumerate(packs):
            start = 0
            for document in pack:
                end = _write_document(document, input_ids[row], position_ids[row], labels[row], start)
                documents.append((row, start, end))
                start = end
            position_ids[row, start:] = torch.arange(shape[1] - start)
            if start < shape[1]:
                documents.append((row, start, shape[1]))
        supervised_index = (labels.flatten() != IGNORE).nonzero().squeeze(1)
        batch = Batch(
            input_ids=input_ids,
            position_ids=position_ids,
            labels=labels,
            supervised_index=supervised_index,
            documents=documents,
            num_supervised=len(supervised_index),
            num_tokens=sum(lengths),
            ids=[[document["id"] for document in pack] for pack in packs],
        )
        if self.weights is not None:
            parts = [part for pack in packs for document in pack for part in _labelled_parts(document)]
            batch["weights"] = torch.tensor(self.weights)[torch.tensor(parts, dtype=torch.long)]
            batch["total_weight"] = float(batch["weights"].sum(dtype=torch.float64))
        return batch


def _labelled_parts(document: Document) -> list[int]:
    """What each token with a label is: nothing predicts the first token of a document."""
    starts_supervised = bool(document["supervised"]) and document["supervised"][0] == 0
    return document["parts"][1:] if starts_supervised else document["parts"]


def _write_document(
    document: Document, input_ids: torch.Tensor, position_ids: torch.Tensor, labels: torch.Tensor, start: int
) -> int:
    """Write a document into a row, tensors of shape ``(length,)``, at ``start``; returns its end."""
    tokens = torch.tensor(document["input_ids"])
    end = start + len(tokens)
    input_ids[start:end] = tokens
    position_ids[start:end] = torch.arange(len(tokens))
    spans = document["supervised"]
    for first, last in zip(spans[::2], spans[1::2], strict=True):
        first = max(first, 1)  # nothing predicts the first token
        labels[start + first - 1 : start + last - 1] = tokens[first:last]
    return end
