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
    each supervised token is; see :func:`fc_lightning.chat_template.token_parts.supervised_parts`.
    """

    id: str
    input_ids: list[int]
    supervised: list[int]
    parts: NotRequired[list[int]]
    rejected_ids: NotRequired[list[int]]  # the same conversation with its rejected turn, or empty
    rejected_supervised: NotRequired[list[int]]  # that turn
    is_rejected: NotRequired[bool]


class Batch(TypedDict):
    """One micro-batch of ``rows`` packs, padded to the same ``length``.

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
    pair_side: NotRequired[torch.Tensor]  # (num_supervised,); see `models.preference_loss.Preference`
    num_pairs: NotRequired[int]


def next_power_of_two(length: int) -> int:
    """The smallest power of two that is not below a positive length."""
    return 1 << (length - 1).bit_length()


@dataclass(frozen=True)
class PackingCollator:
    """Collates packs of documents into a batch.

    Args:
        pad_token_id: Fills a row after its last document. Padding is a separate document: nothing attends to it.
        pad_to: Length that rows are padded to; 0 for the longest row of the batch.
        weights: Weight of each part of a turn in the loss; None weights all tokens alike.
        few_lengths: Whether to pad rows further, to a power of two, so that kernels are compiled for few lengths.
        multiple_of: Rows are padded to a multiple of it.
    """

    pad_token_id: int
    pad_to: int = 0
    weights: tuple[float, ...] | None = None
    few_lengths: bool = False
    multiple_of: int = 1

    def __call__(self, packs: Sequence[Sequence[Any]]) -> Batch:
        """Collate packs of documents.

        Without packs the batch is one padded row without labels, for a rank that has run out of data.
        """
        ids = [[document["id"] for document in pack] for pack in packs or [[]]]
        packs = [[side for document in pack for side in _sides(document)] for pack in packs or [[]]]
        lengths = [sum(len(document["input_ids"]) for document in pack) for pack in packs]
        longest = max(self.pad_to, *lengths, 1)
        padded = next_power_of_two(longest) if self.few_lengths else -(-longest // self.multiple_of) * self.multiple_of
        shape = (len(packs), padded)
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
            ids=ids,
        )
        return self._weighted(batch, [document for pack in packs for document in pack])

    def _weighted(self, batch: Batch, documents: Sequence[Document]) -> Batch:
        """The batch with weights of its tokens, if they have any, and with its pairs."""
        num_pairs = sum(document.get("is_rejected", False) for document in documents)
        if self.weights is None and not num_pairs:
            return batch
        weights, sides, pair = [], [], 0
        for document in documents:
            if document.get("is_rejected"):  # it follows its chosen counterpart
                weights += [0.0] * _num_labels(document["supervised"])
                sides += [2 * pair + 1] * _num_labels(document["supervised"])
                pair += 1
                continue
            count = _num_labels(document["supervised"])
            parts = [0] * count if self.weights is None else _labelled_parts(document)
            weights += [1.0] * count if self.weights is None else [self.weights[part] for part in parts]
            compared = _num_labels(document["supervised"][-2:]) if document.get("rejected_ids") else 0
            sides += [-1] * (count - compared) + [2 * pair] * compared
        batch["weights"] = torch.tensor(weights, dtype=torch.float32)
        batch["total_weight"] = float(batch["weights"].sum(dtype=torch.float64))
        if num_pairs:
            batch["pair_side"], batch["num_pairs"] = torch.tensor(sides), num_pairs
        return batch


def _sides(document: Document) -> list[Document]:
    """The document, and its rejected counterpart if there is one."""
    if not document.get("rejected_ids"):
        return [document]
    ids, supervised = document["rejected_ids"], document["rejected_supervised"]
    return [document, Document(id=document["id"], input_ids=ids, supervised=supervised, is_rejected=True)]


def _num_labels(supervised: Sequence[int]) -> int:
    """Tokens with a label in flat ranges: nothing predicts the first token of a document."""
    return sum(last - max(first, 1) for first, last in zip(supervised[::2], supervised[1::2], strict=True))


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
