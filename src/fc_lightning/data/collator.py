"""From packs of documents to the batch that a model trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch

IGNORE = -100


class Document(TypedDict):
    """One encoded conversation.

    ``supervised`` are half-open ranges of token indices, flat: ``[start, end, start, end, …]``.
    """

    id: str
    input_ids: list[int]
    supervised: list[int]


class Batch(TypedDict):
    """One micro-batch of ``rows`` packs, padded to the longest, ``length`` tokens.

    Labels are shifted already: the label at a position is the token that follows it in the same conversation, if that
    token is supervised, and -100 otherwise. The counts are plain numbers, so that nobody asks the device for them.
    """

    input_ids: torch.Tensor  # (rows, length)
    position_ids: torch.Tensor  # (rows, length), from 0 in each document
    labels: torch.Tensor  # (rows, length)
    supervised_index: torch.Tensor  # (supervised,), where labels are, counted through the rows
    documents: list[tuple[int, int, int]]  # row, start and end of each, padding included: they cover the rows
    num_supervised: int
    num_tokens: int
    ids: list[list[str]]


@dataclass(frozen=True)
class PackingCollator:
    """Makes a batch of packs.

    Args:
        pad_token_id: What fills a row behind its last document. Padding is a document of its own: nothing sees it.
        pad_to: Length that rows are filled up to; 0 for that of the longest row in the batch.
    """

    pad_token_id: int
    pad_to: int = 0

    def __call__(self, packs: Sequence[Sequence[Any]]) -> Batch:
        """Collate packs of documents.

        No packs at all give one padded row without labels: a rank that has run out of data still takes part in a step.
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
                end = _place(document, input_ids[row], position_ids[row], labels[row], start)
                documents.append((row, start, end))
                start = end
            position_ids[row, start:] = torch.arange(shape[1] - start)
            if start < shape[1]:
                documents.append((row, start, shape[1]))
        supervised_index = (labels.flatten() != IGNORE).nonzero().squeeze(1)
        return Batch(
            input_ids=input_ids,
            position_ids=position_ids,
            labels=labels,
            supervised_index=supervised_index,
            documents=documents,
            num_supervised=len(supervised_index),
            num_tokens=sum(lengths),
            ids=[[document["id"] for document in pack] for pack in packs],
        )


def _place(
    document: Document, input_ids: torch.Tensor, position_ids: torch.Tensor, labels: torch.Tensor, start: int
) -> int:
    """Write a document into a row, ``(length,)`` each, at ``start``; returns where it ends."""
    tokens = torch.tensor(document["input_ids"])
    end = start + len(tokens)
    input_ids[start:end] = tokens
    position_ids[start:end] = torch.arange(len(tokens))
    spans = document["supervised"]
    for first, last in zip(spans[::2], spans[1::2], strict=True):
        first = max(first, 1)  # nothing comes before the first token, so nothing predicts it
        labels[start + first - 1 : start + last - 1] = tokens[first:last]
    return end
