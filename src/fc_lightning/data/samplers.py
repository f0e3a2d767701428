"""Plans: which documents go together into a row, which rows into a micro-batch, and which of these to which rank."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Sampler

from fc_lightning.data.packing import plan_packs

MicroBatch = list[list[int]]  # rows of document numbers
# Prompts that begin with so many equal ids are kept together. Rendered prompts all begin with some.
_SHARED = 64


class MicroBatchSampler(Sampler[MicroBatch]):
    """Plans an epoch's packs, groups them into micro-batches, and deals these out to ranks.

    The plan is made before ranks split: micro-batch ``i`` of rank ``r`` is number ``i * num_replicas + r``, so that a
    step sees the same rows however they are spread over rows a batch, accumulation and ranks. Where the number does
    not divide, the last ranks get an empty micro-batch: nothing is repeated and nothing left out.

    Args:
        lengths: Tokens of each document.
        capacity: Tokens of a pack; None for a row a document.
        batch_size: Rows of a micro-batch.
        num_replicas: Number of ranks.
        rank: This one.
        seed: Shuffles, together with the epoch; None keeps the order of the documents, for evaluation.
        sources: The source of each document, if sources have weights.
        weights: Weight of each source, or None.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        capacity: int | None,
        batch_size: int,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int | None = None,
        sources: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
    ):
        self.lengths, self.capacity, self.batch_size = lengths, capacity, batch_size
        self.num_replicas, self.rank, self.seed = num_replicas, rank, seed
        self.sources, self.weights = sources, weights
        self.epoch = 0
        self._done = (0, 0)  # an epoch, and the micro-batches of all ranks that it is begun behind
        self._num_packs: int | None = None  # of an epoch of weighted sources
        self._length: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls it when an epoch begins."""
        self.epoch = epoch

    def resume(self, epoch: int, done: int) -> None:
        """Begin with an epoch in which so many micro-batches, of all ranks together, have been trained on."""
        self.epoch, self._done = epoch, (epoch, done)

    def plan(self) -> list[MicroBatch]:
        """All ranks' micro-batches of the epoch, in order."""
        rng = random.Random(f"{self.seed}/{self.epoch}")
        rows = self._rows(self.epoch, rng)
        if self.weights is not None and self.capacity is not None:
            if self._num_packs is None:
                self._num_packs = len(self._rows(0, random.Random(f"{self.seed}/0")))
            rows = self._as_many(rows, self._num_packs)
        if self.seed is not None and self.capacity is not None:
            rng.shuffle(rows)
        return [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]

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

    def _as_many(self, rows: list[list[int]], count: int) -> list[list[int]]:
        """The draws of an epoch in exactly so many packs, as the trainer counts on every epoch's having.

        Other draws may need some packs more or less. The few documents that are too many, of whichever source, are left
        out of this epoch; where packs are missing, a document of a full one gets its own.
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
        epoch, done = self._done
        start = -(-done // self.num_replicas) if epoch == self.epoch else 0
        return iter(shard_batches(self.plan(), self.num_replicas, self.rank)[start:])

    def __len__(self) -> int:
        # The number of packs does not depend on the shuffle: equally long documents are interchangeable.
        if self._length is None:
            self._length = -(-len(self.plan()) // self.num_replicas)
        return self._length


def shard_batches(batches: Sequence[Any], num_replicas: int, rank: int) -> list[Any]:
    """This rank's share, one in turn; filled up with empty batches so that all ranks have equally many."""
    filled = [*batches, *[[]] * (-len(batches) % num_replicas)]
    return filled[rank::num_replicas]


def plan_generation(prompts: Sequence[Sequence[int]], max_tokens: int, max_prompts: int) -> list[list[int]]:
    """Group prompts of similar length: the longest first, so that memory is at its peak at once and not at the end.

    Prompts with a long beginning in common stay together, so that it is computed once.

    Args:
        prompts: Their ids.
        max_tokens: Of a group, all of its prompts filled up to the longest.
        max_prompts: Of a group.
    """
    families: list[list[int]] = []
    for prompt in sorted(range(len(prompts)), key=lambda number: list(prompts[number])):
        if families and prompts[prompt][:_SHARED] == prompts[families[-1][-1]][:_SHARED]:
            families[-1].append(prompt)
        else:
            families.append([prompt])
    families.sort(key=lambda family: -max(len(prompts[prompt]) for prompt in family))
    batches: list[list[int]] = []
    longest = 0
    for prompt in (prompt for family in families for prompt in family):
        longest = max(longest, len(prompts[prompt]))
        if batches and len(batches[-1]) < max_prompts and longest * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(prompt)
        else:
            batches.append([prompt])
            longest = len(prompts[prompt])
    return batches


def draw_by_weight(sources: Sequence[int], weights: Sequence[float], seed: int | None, epoch: int) -> list[int]:
    """Draw as many documents as there are, each source giving its share by weight.

    A source is gone through from epoch to epoch, in another order each time it begins anew: none of its documents is
    drawn again before all others have been.

    Args:
        sources: The source of each document.
        weights: The weight of each source.
        seed: Of the orders.
        epoch: Which draw.
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
