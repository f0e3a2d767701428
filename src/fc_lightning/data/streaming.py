"""Streaming: rows are read, encoded and packed while the model trains, so that memory does not grow with the data.

Rows are dealt out to *shards*, one for each worker process of each rank: row ``i`` of a source is shard ``i mod
shards``'s. A shard reads a block of rows, shuffles and packs it, and goes on to the next; behind the last row it begins
anew. All that it needs to go on from any micro-batch is where its block began.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, TypedDict

import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.data.collator import Document, PackingCollator
from fc_lightning.data.encoding import Preparation, documents_of
from fc_lightning.data.packing import plan_packs
from fc_lightning.data.prepare import usable
from fc_lightning.data.row_report import RowReport
from fc_lightning.data.sources import DataError, Row, Source

_ENOUGH = 200  # rows after which the share of unreadable ones says something
_EXAMPLES = 5

Entry = tuple[int, str, Row]  # number of the source, place, row


class Position(TypedDict):
    """How far a shard has come.

    ``places`` holds, for each group of sources, pass, source and rows of the shard read when the block begins.
    """

    block: int
    index: int  # micro-batches of the block that are done
    places: list[list[int]]
    counts: dict[str, int]  # what became of the rows, from the beginning
    examples: list[str]  # of unreadable rows


class StreamedBatch(NamedTuple):
    """A micro-batch of packs, the shard that it comes from, and the shard's position behind it."""

    packs: list[list[Document]]
    shard: int
    position: Position


@dataclass(eq=False)
class StreamingPacks(IterableDataset):
    """An endless stream of micro-batches.

    Sources without weights follow each other and a pass gives every row once; with weights each block holds their
    shares, and each source begins anew on its own.

    Attributes:
        sources: Where rows come from.
        template: Renders and encodes them.
        how: How conversations become documents.
        batch_size: Packs of a micro-batch.
        packing: Whether packs hold as many documents as fit, or one.
        buffer: Rows of a block, shuffled and packed together.
        seed: Of the shuffle.
        max_unreadable: The stream stops if a larger share of its rows cannot be read.
        weights: One for each source, or None.
        num_replicas: Number of ranks.
        rank: This one.
        num_workers: Worker processes of a rank; without any the rank itself is one shard.
        consumed: Micro-batches of this rank that are done: :meth:`__iter__` goes on behind them.
        positions: Of this rank's shards, by number.
    """

    sources: Sequence[Source]
    template: ChatTemplate
    how: Preparation
    batch_size: int = 1
    packing: bool = True
    buffer: int = 1024
    seed: int = 0
    max_unreadable: float = 0.05
    weights: Sequence[float] | None = None
    num_replicas: int = 1
    rank: int = 0
    num_workers: int = 0
    consumed: int = 0
    positions: dict[int, Position] = field(default_factory=dict)

    def __iter__(self) -> Iterator[StreamedBatch]:
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        if info:  # the workers themselves are what runs side by side
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        # Batches are taken from the workers in turn, beginning with the first: it is the one whose turn it is.
        if workers != max(1, self.num_workers):
            raise ValueError(f"{workers} processes stream, not {self.num_workers}")
        shard = self.rank * workers + (worker + self.consumed) % workers
        groups = [list(range(len(self.sources)))] if self.weights is None else [[n] for n in range(len(self.sources))]
        fresh = Position(block=0, index=0, places=[[0, 0, 0] for _ in groups], counts={}, examples=[])
        position = _copy(self.positions.get(shard, fresh))
        streams = [
            self._endless(group, place, shard, self.num_shards)
            for group, place in zip(groups, position["places"], strict=True)
        ]
        while True:
            before = _copy(position)
            rng = random.Random(f"{self.seed}/{shard}/{position['block']}")
            batches = self._plan(self._block(streams, position), position, rng)
            first = before["index"]
            before["counts"], before["examples"] = position["counts"], position["examples"]
            position["block"], position["index"] = position["block"] + 1, 0
            for index in range(first, len(batches)):
                behind = position if index + 1 == len(batches) else Position({**before, "index": index + 1})
                yield StreamedBatch(batches[index], shard, _copy(behind))

    @property
    def num_shards(self) -> int:
        """Shards of all ranks."""
        return self.num_replicas * max(1, self.num_workers)

    def consume(self, batch: StreamedBatch) -> None:
        """Note that the model has taken a micro-batch of this rank: the stream goes on behind it."""
        self.consumed += 1
        self.positions[batch.shard] = batch.position

    def lines(self) -> list[str]:
        """What became of the rows that this rank has read, in a few lines of text."""
        counts: Counter[str] = Counter()
        for position in self.positions.values():
            counts.update(position["counts"])
        examples = [case for position in self.positions.values() for case in position["examples"]]
        found = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in counts.items())
        return [f"train, streamed by this process: {found}", *(f"  {case}" for case in examples[:_EXAMPLES])]

    def place(self) -> dict[str, Any]:
        """Where this rank stands."""
        return {"consumed": self.consumed, "positions": dict(self.positions)}

    def state_dict(self, place: dict[str, Any] | None = None) -> dict[str, Any]:
        """Where all ranks' shards stand; a collective.

        Args:
            place: This rank's, if another one than now.
        """
        place = place or self.place()
        every = [place["positions"]]
        if self.num_replicas > 1:
            every = [{} for _ in range(self.num_replicas)]
            torch.distributed.all_gather_object(every, place["positions"])
        positions = {shard: position for one in every for shard, position in one.items()}
        return {"shards": self.num_shards, "consumed": place["consumed"], "positions": positions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a stream of as many shards has stopped.

        Raises:
            DataError: If there are more shards now, or fewer.
        """
        if state["shards"] != self.num_shards:
            workers, rest = divmod(state["shards"], self.num_replicas)
            how = f"a number of ranks that divides {state['shards']}" if rest else f"`--data.num_workers {workers}`"
            raise DataError(
                f"the checkpoint's data was streamed by {state['shards']} processes (ranks × `data.num_workers`), this "
                f"run has {self.num_shards}; resume with as many: {how}"
            )
        self.consumed, self.positions = state["consumed"], dict(state["positions"])

    def _endless(self, group: Sequence[int], place: list[int], shard: int, shards: int) -> Iterator[Entry | None]:
        """The shard's rows of some sources, over and over, with None behind each pass; ``place`` follows them."""
        while True:
            for source in range(place[1], len(group)):
                for where, row in self.sources[group[source]].rows(shard + place[2] * shards, shards, stream=True):
                    place[2] += 1
                    yield group[source], where, row
                place[1:] = [source + 1, 0]
            place[:] = [place[0] + 1, 0, 0]
            yield None

    def _block(self, streams: Sequence[Iterator[Entry | None]], position: Position) -> list[Entry]:
        """The rows of the next block; without weights it ends with the pass."""
        if self.weights is None:
            rows: list[Entry] = []
            for entry in islice(streams[0], self.buffer):
                if entry is None:
                    break
                rows.append(entry)
            return rows
        rows = []
        for stream, weight in zip(streams, self.weights, strict=True):
            share, block = self.buffer * weight / sum(self.weights), position["block"]
            wanted = len(rows) + int((block + 1) * share) - int(block * share)
            ends = 0
            while len(rows) < wanted:
                entry = next(stream)
                ends = 0 if entry else ends + 1
                if ends == 2:
                    raise DataError("`data.train`: every source needs more rows than there are ranks × workers")
                rows += [entry] if entry else []
        return rows

    def _plan(self, rows: list[Entry], position: Position, rng: random.Random) -> list[list[list[Document]]]:
        """The micro-batches of a block, in random order."""
        rng.shuffle(rows)
        report = RowReport()
        chunk = list(usable(rows, self.sources, self.template, self.how, report))
        documents: list[Any] = list(documents_of(chunk, self.template, self.how, report))
        self._count(report, position)
        if self.packing:
            plan = plan_packs([len(document["input_ids"]) for document in documents], self.how.max_length)
            packs = [[documents[index] for index in pack] for pack in plan]
        else:
            packs = [[document] for document in documents]
        rng.shuffle(packs)
        return [packs[start : start + self.batch_size] for start in range(0, len(packs), self.batch_size)]

    def _count(self, report: RowReport, position: Position) -> None:
        """Add a block's report to the counts, and stop where there is no sense in going on."""
        counts = position["counts"]
        if position["index"]:  # this block was counted before the stream was interrupted
            return
        found = {name: len(getattr(report, name)) for name in ("skipped", "flawed", "too_long", "cut")}
        for name, number in {"rows": report.rows, "documents": report.documents, **found}.items():
            counts[name] = counts.get(name, 0) + number
        cases = [f"{place} ({id}): {reason}" for place, id, reason in report.skipped + report.too_long]
        position["examples"] = [*position["examples"], *cases][:_EXAMPLES]
        examples = "".join(f"\n  {case}" for case in position["examples"])
        if counts["rows"] >= _ENOUGH and counts["skipped"] > self.max_unreadable * counts["rows"]:
            raise DataError(
                f"`data.train`: {counts['skipped']:,} of the first {counts['rows']:,} rows cannot be read, more than "
                f"{self.max_unreadable:.1%} (`data.max_unreadable`); the first are{examples}"
            )
        if not counts["documents"] and (not report.rows or position["places"][0][0]):
            raise DataError(
                f"`data.train`: none of the {counts['rows']:,} rows that this process would stream can be used; there "
                f"must be more rows than ranks × workers{examples}"
            )


@dataclass(frozen=True)
class StreamCollator:
    """Collates a streamed micro-batch, and hands on under ``stream`` where it comes from."""

    collator: PackingCollator

    def __call__(self, batch: Any) -> dict[str, Any]:
        """The batch of its packs, with ``stream`` added."""
        return {**self.collator(batch.packs), "stream": batch._replace(packs=[])}


def _copy(position: Position) -> Position:
    return Position(
        block=position["block"],
        index=position["index"],
        places=[list(place) for place in position["places"]],
        counts=dict(position["counts"]),
        examples=list(position["examples"]),
    )
