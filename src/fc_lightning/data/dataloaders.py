"""Torch datasets and loaders: a sampler's indices become batches of packs or prompts."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, TypedDict

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from fc_lightning.data.collator import PackingCollator
from fc_lightning.data.samplers import MicroBatch
from fc_lightning.data.streaming import StreamCollator, StreamingPacks


class PromptBatch(TypedDict):
    """Prompts to generate from; ``order`` is the index of each in the data."""

    order: list[int]
    id: list[str]
    turn: list[int]
    category: list[str]
    input_ids: list[list[int]]
    expected: list[str]  # the JSON of a list of calls
    tools: list[str]  # the JSON of the available tools, in OpenAI's shape
    gold: list[str]  # the JSON of `Conversation.gold`, on the first turn with a call; otherwise empty
    response_schema: list[str]  # the JSON schema of the answer, or empty
    answer: list[str]  # the text of the expected turn, without its calls
    perturbation: list[str]  # how the prompt was perturbed, or empty


class PackDataset(TorchDataset):
    """Packs of documents: an index is a micro-batch, a list of packs of document numbers."""

    def __init__(self, documents: Dataset):
        self.documents = documents

    def __getitem__(self, packs: MicroBatch) -> list[list[Any]]:
        return [[self.documents[document] for document in pack] for pack in packs]


class PromptDataset(TorchDataset):
    """Batches of prompts: an index is a list of prompt numbers."""

    def __init__(self, prompts: Any):
        self.prompts = prompts

    def __getitem__(self, numbers: list[int]) -> PromptBatch:
        rows = [self.prompts[number] for number in numbers]
        return PromptBatch(
            order=numbers,
            id=[row["id"] for row in rows],
            turn=[row["turn"] for row in rows],
            category=[row["category"] for row in rows],
            input_ids=[row["input_ids"] for row in rows],
            expected=[row["expected"] for row in rows],
            tools=[row["tools"] for row in rows],
            gold=[row["gold"] for row in rows],
            response_schema=[row["response_schema"] for row in rows],
            answer=[row["answer"] for row in rows],
            perturbation=[row["perturbation"] for row in rows],
        )


def document_loader(
    packs: TorchDataset, sampler: Sampler[MicroBatch], collator: PackingCollator, num_workers: int, pin_memory: bool
) -> DataLoader:
    """Micro-batches of packed documents, as planned by the sampler."""
    return DataLoader(
        packs,
        sampler=sampler,
        batch_size=None,
        generator=torch.Generator(),  # a loader draws a seed: not from the training generator
        collate_fn=collator,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
    )


def stream_loader(stream: StreamingPacks, collator: PackingCollator, num_workers: int, pin_memory: bool) -> DataLoader:
    """Streamed micro-batches."""
    # Not persistent: the workers of a new iteration must start at the position that the model has reached.
    return DataLoader(
        stream,
        batch_size=None,
        collate_fn=StreamCollator(collator),
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )


def prompt_loader(prompts: Any, batches: list[list[int]]) -> DataLoader:
    """Prompts in planned batches."""
    return DataLoader(
        PromptDataset(prompts),
        sampler=batches,
        batch_size=None,
        collate_fn=_identity,
        generator=torch.Generator(),
    )


def without_perturbations(prompts: Dataset) -> Dataset:
    """The prompts as the data has them."""
    return prompts.select([number for number, name in enumerate(prompts["perturbation"]) if not name])


def without_conversations(prompts: Dataset, ids: Set[str]) -> Dataset:
    """The prompts of all other conversations."""
    return prompts.select([number for number, name in enumerate(prompts["id"]) if name not in ids])


def evenly_spread(prompts: Dataset, number: int) -> Dataset:
    """Select a number of prompts at even distances; all if there are fewer."""
    number = min(number, len(prompts))
    return prompts.select([index * len(prompts) // number for index in range(number)])


def _identity(batch: Any) -> Any:
    return batch


def token_counts(dataset: Dataset) -> list[int]:
    """Number of tokens of each document, with its rejected turn's counterpart, without reading the tokens."""
    counts = []
    for name in ("input_ids", "rejected_ids"):
        chunks = dataset.data.column(name).chunks
        counts.append([length.as_py() or 0 for chunk in chunks for length in chunk.value_lengths()])
    return [sum(both) for both in zip(*counts, strict=True)]


def supervised_counts(dataset: Dataset) -> list[int]:
    """Number of supervised tokens of each document, without reading the tokens."""
    counts: list[int] = []
    for chunk in dataset.data.column("supervised").chunks:
        borders = chunk.flatten().to_numpy().astype("int64")  # start, end, start, end, …
        sums = np.concatenate([[0], np.cumsum(borders * np.resize([-1, 1], len(borders)))])
        ends = np.cumsum(chunk.value_lengths().to_numpy())
        counts += np.diff(sums[ends], prepend=0).tolist()
    return counts
