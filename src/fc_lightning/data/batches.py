"""Batches: what a sampler's numbers stand for."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from fc_lightning.data.samplers import MicroBatch


class PromptBatch(TypedDict):
    """Prompts to generate from; ``order`` is the place of each in the data."""

    order: list[int]
    id: list[str]
    turn: list[int]
    category: list[str]
    input_ids: list[list[int]]
    expected: list[str]  # the JSON of a list of calls
    tools: list[str]  # the JSON of the tools on offer, in OpenAI's shape
    gold: list[str]  # the JSON of `Conversation.gold`, with the first turn that calls; empty where there is none
    response_schema: list[str]  # the JSON schema of the answer; empty where it may be anything
    answer: list[str]  # the text of the expected turn beside its calls


class Packs(TorchDataset):
    """Documents by packs: an index is a micro-batch, rows of document numbers."""

    def __init__(self, documents: Dataset):
        self.documents = documents

    def __getitem__(self, packs: MicroBatch) -> list[list[Any]]:
        return [[self.documents[document] for document in pack] for pack in packs]


class Prompts(TorchDataset):
    """Prompts by batches: an index is a list of prompt numbers."""

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
        )


def prompt_loader(prompts: Any, batches: list[list[int]]) -> DataLoader:
    """Prompts by the batches that were planned."""
    return DataLoader(
        Prompts(prompts),
        sampler=batches,
        batch_size=None,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # of its own: a loader draws a seed, from the training's generator if it can
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def lengths_of(dataset: Dataset) -> list[int]:
    """Tokens of each row, without reading the tokens."""
    column = dataset.data.column("input_ids")
    return [length.as_py() for chunk in column.chunks for length in chunk.value_lengths()]


def supervised_of(dataset: Dataset) -> list[int]:
    """Supervised tokens of each row, without reading the tokens."""
    counts: list[int] = []
    for chunk in dataset.data.column("supervised").chunks:
        places = chunk.flatten().to_numpy().astype("int64")  # first, one past the last, first, …
        sums = np.concatenate([[0], np.cumsum(places * np.resize([-1, 1], len(places)))])
        ends = np.cumsum(chunk.value_lengths().to_numpy())
        counts += np.diff(sums[ends], prepend=0).tolist()
    return counts
