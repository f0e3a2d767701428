"""Samplers: which documents form a pack, which packs a micro-batch, and which micro-batches go to which rank."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Sampler

from fc_lightning.data.packing import plan_packs

MicroBatch = list[list[int]]  # packs of document numbers
_SHARED_PREFIX = 64  # prompts with this many equal leading ids are kept together


@dataclass(eq=False)
class MicroBatchSampler(Sampler[MicroBatch]):
    """Plans the packs of an epoch, groups them into micro-batches, and shards these over ranks.

    The plan does not depend on the ranks: micro-batch ``i`` of rank ``r`` is number ``i * num_replicas + r``, so that a
    step sees the same rows regardless of batch size, accumulation and number of ranks. Where the number of
    micro-batches is not divisible, the last ranks get an empty one: no row is repeated or dropped.
    """

    lengths: Sequence[int]  # tokens of each document
    capacity: int | None  # tokens of a pack; None for one document per row
    batch_size: int  # rows per micro-batch
    num_replicas: int = 1
    rank: int = 0
    seed: int | None = None  # shuffles, together with the epoch; None keeps the order of the documents, for evaluation
    sources: Sequence[int] | None = None  # the source of each document, if sources have weights
    weights: Sequence[float] | None = None  # of each source
    epoch: int = 0
    _resumed: tuple[int, int] = (0, 0)  # epoch, and the micro-batches of all ranks to skip in it
    _num_packs: int | None = None  # of every epoch, if documents differ from epoch to epoch
    _length: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls it when an epoch begins."""
        self.epoch = epoch

    def resume(self, epoch: int, done: int) -> None:
        """Start with ``epoch``, after ``done`` micro-batches of all ranks together."""
        self.epoch, self._resumed = epoch, (epoch, done)

    def plan(self) -> list[MicroBatch]:
        """All ranks' micro-batches of the epoch, in order."""
        rng = random.Random(f"{self.seed}/{self.epoch}")
        rows = self._rows(self.epoch, rng)
        if self.weights is not None and self.capacity is not None and self._num_packs is None:
            self._num_packs = self.count_packs()
        if self._num_packs is not None:
            rows = self._with_num_packs(rows, self._num_packs)
        if self.seed is not None and self.capacity is not None:
            rng.shuffle(rows)
        return [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]

    def count_packs(self) -> int:
        """Number of packs of the first epoch."""
        return len(self._rows(0, random.Random(f"{self.seed}/0")))

    def _rows(self, epoch: int, rng: random.Random) -> list[list[int]]:
        documents = list(range(len(self.lengths)))
        if self.weights is not None and self.sources is not None:
            documents = draw_by_weight(self.sources, self.weights, self.seed, epoch)
        if self.seed is not None:
            rng.shuffle(documents)
        return self._packs(documents)

    def _packs(self, documents: list[int]) -> list[list[int]]:
        if self.capacity is None:
            return [[document] for document in documents]
        packs = plan_packs([self.lengths[document] for document in documents], self.capacity)
        return [[documents[index] for index in pack] for pack in packs]

    def _with_num_packs(self, rows: list[list[int]], count: int) -> list[list[int]]:
        """Adjust the number of packs: the trainer expects the same number in every epoch.

        The documents drawn in another epoch may need slightly more or fewer packs. Surplus documents, of any source,
        are skipped in this epoch; missing packs get a document of a full one.
        """
        while len(rows) > count:
            documents = sorted(document for row in rows for document in row)
            random.Random(f"{self.seed}/{self.epoch}/{len(documents)}").shuffle(documents)
            rows = self._packs(documents[: -max(1, (len(rows) - count) * len(documents) // (2 * len(rows)))])
        while len(rows) < count:
            fullest = max(rows, key=len)
            rows.append([fullest.pop()] if len(fullest) > 1 else [])
        return rows

    def __iter__(self) -> Iterator[MicroBatch]:
        epoch, done = self._resumed
        start = -(-done // self.num_replicas) if epoch == self.epoch else 0
        return iter(shard_batches(self.plan(), self.num_replicas, self.rank)[start:])

    def __len__(self) -> int:
        # The number of packs does not depend on the shuffle: documents of equal length are interchangeable.
        if self._length is None:
            self._length = -(-len(self.plan()) // self.num_replicas)
        return self._length


def shard_batches(batches: Sequence[Any], num_replicas: int, rank: int) -> list[Any]:
    """This rank's batches, round robin; padded with empty ones so that all ranks have the same number."""
    filled = [*batches, *[[]] * (-len(batches) % num_replicas)]
    return filled[rank::num_replicas]


def generation_order(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The order to generate in: the longest prompts first, so that an out-of-memory error comes at the start.

    Prompts with a long common prefix stay together, so that it is computed once.
    """
    groups: list[list[int]] = []
    for prompt in sorted(range(len(prompts)), key=lambda number: list(prompts[number])):
        if groups and prompts[prompt][:_SHARED_PREFIX] == prompts[groups[-1][-1]][:_SHARED_PREFIX]:
            groups[-1].append(prompt)
        else:
            groups.append([prompt])
    groups.sort(key=lambda group: -max(len(prompts[prompt]) for prompt in group))
    return [prompt for group in groups for prompt in group]


def plan_generation(prompts: Sequence[Sequence[int]], max_tokens: int, max_prompts: int) -> list[list[int]]:
    """Batches of prompts in the order of :func:`generation_order`, so of similar length."""
    batches: list[list[int]] = []
    longest = 0
    for prompt in generation_order(prompts):
        longest = max(longest, len(prompts[prompt]))
        if batches and len(batches[-1]) < max_prompts and longest * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(prompt)
        else:
            batches.append([prompt])
            longest = len(prompts[prompt])
    return batches


def draw_by_weight(sources: Sequence[int], weights: Sequence[float], seed: int | None, epoch: int) -> list[int]:
    """Draw as many documents as there are, with each source's fraction given by its weight.

    A source is traversed across epochs and reshuffled for each pass: no document is drawn again before all other
    documents of its source.
    """
    by_source: list[list[int]] = [[] for _ in weights]
    for document, source in enumerate(sources):
        by_source[source].append(document)
    drawn: list[int] = []
    for source, (documents, weight) in enumerate(zip(by_source, weights, strict=True)):
        count = round(len(sources) * weight / sum(weights))
        start = epoch * count
        while documents and count:
            nth, first = divmod(start, len(documents))
            order = random.Random(f"{seed}/{source}/{nth}").sample(documents, len(documents))
            taken = order[first : first + count]
            drawn += taken
            start, count = start + len(taken), count - len(taken)
    return drawn
