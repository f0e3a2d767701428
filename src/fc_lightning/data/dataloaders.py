"""Torch datasets and loaders: a sampler's indices become batches of packs or prompts."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from fc_lightning.data.samplers import MicroBatch

_NUM_JOINED = 2  # batches of prompts; signals are handled after each, and the progress bar shows the exact match so far


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
    answer: list[str]  # the text of the reference turn, without its calls
    perturbation: list[str]  # how the prompt was perturbed, or empty
    limits: tuple[int, int]  # largest number of tokens and of prompts that are generated at once


def is_prompt_batch(batch: Any) -> bool:
    """Whether a batch has prompts to generate from, rather than documents."""
    return isinstance(batch, dict) and "order" in batch


class PackDataset(TorchDataset):
    """Packs of documents: an index is a micro-batch, a list of packs of document numbers."""

    def __init__(self, documents: Dataset):
        self.documents = documents

    def __getitem__(self, packs: MicroBatch) -> list[list[Any]]:
        return [[self.documents[document] for document in pack] for pack in packs]


class PromptDataset(TorchDataset):
    """Batches of prompts: an index is a list of prompt numbers."""

    def __init__(self, prompts: Any, limits: tuple[int, int]):
        self.prompts = prompts
        self.limits = limits

    def __getitem__(self, numbers: list[int]) -> PromptBatch:
        rows = [self.prompts[number] for number in numbers]
        names = PromptBatch.__annotations__.keys() - {"order", "limits"}
        batch: Any = {"order": numbers, "limits": self.limits, **{name: [row[name] for row in rows] for name in names}}
        return batch


def loader(dataset: Any, **options: Any) -> DataLoader:
    """A loader of batches that are planned already."""
    # A loader draws a seed: not from the training generator.
    return DataLoader(dataset, batch_size=None, generator=torch.Generator(), **options)


def join_for_refill(batches: list[list[int]], trainer: Any) -> list[list[int]]:
    """Join prompts that do not fit at once: generation reads the next ones when others end.

    Batches stay as they are where a limit of the trainer counts them.
    """
    limits = [getattr(trainer, f"limit_{stage}_batches", 1.0) for stage in ("val", "test", "predict")]
    counts_batches = 0 < getattr(trainer, "num_sanity_val_steps", 0) < float("inf")
    if counts_batches or any(isinstance(limit, int) or limit != 1.0 for limit in limits):
        return batches
    starts = range(0, len(batches), _NUM_JOINED)
    return [[number for batch in batches[start : start + _NUM_JOINED] for number in batch] for start in starts]


def without_perturbations(prompts: Dataset) -> Dataset:
    """The prompts that are not perturbed."""
    return prompts.select([number for number, name in enumerate(prompts["perturbation"]) if not name])


def evenly_spread(prompts: Dataset, number: int) -> Dataset:
    """Select a number of prompts at even distances; all if there are fewer."""
    number = min(number, len(prompts))
    return prompts.select([index * len(prompts) // number for index in range(number)])


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
