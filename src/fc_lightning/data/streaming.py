"""Streaming: rows are read, encoded and packed during training, in constant memory.

Rows are split into *shards*, one per worker process of each rank: row ``i`` of a source belongs to shard ``i mod
num_shards``. A shard reads a block of rows, shuffles and packs it, and continues with the next block; after the last
row it starts over. The position at the start of its block is all it needs to resume from any micro-batch.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple, TypedDict

import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.data.collator import Document, PackingCollator
from fc_lightning.data.encoding import EncodingSettings, augment_documents, encode_documents
from fc_lightning.data.packing import plan_packs
from fc_lightning.data.prepare import filter_rows
from fc_lightning.data.row_report import RowReport
from fc_lightning.data.sources import DataError, Row, Source

_MIN_ROWS = 200  # after which the fraction of unreadable rows is checked
_MAX_EXAMPLES = 5

Entry = tuple[int, str, Row]  # source index, place, row


class Position(TypedDict):
    """Position of a shard.

    ``cursors`` holds, for each group of sources, the pass, the source and the number of the shard's rows read at the
    start of the block.
    """

    block: int
    index: int  # consumed micro-batches of the block
    cursors: list[list[int]]
    counts: dict[str, int]  # of used and skipped rows, since the beginning
    examples: list[str]  # of unreadable rows


class StreamedBatch(NamedTuple):
    """A micro-batch of packs, its shard, and the shard's position after it."""

    packs: list[list[Document]]
    shard: int
    position: Position


@dataclass(eq=False)
class StreamingPacks(IterableDataset):
    """An endless stream of micro-batches.

    Without weights, sources follow one another and a pass yields every row once; with weights, each block
    contains their shares, and each source starts over independently.
    """

    sources: Sequence[Source]
    template: ChatTemplate
    settings: EncodingSettings
    batch_size: int = 1
    packing: bool = True  # whether packs hold as many documents as fit, or one
    buffer: int = 1024  # rows of a block, which are shuffled and packed together
    seed: int = 0
    max_unreadable: float = 0.05
    weights: Sequence[float] | None = None
    num_replicas: int = 1
    rank: int = 0
    num_workers: int = 0  # worker processes per rank; without workers the rank itself is one shard
    consumed: int = 0  # number of this rank's consumed micro-batches; `__iter__` starts after them
    positions: dict[int, Position] = field(default_factory=dict)  # the positions of this rank's shards, by shard number

    def __iter__(self) -> Iterator[StreamedBatch]:
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        if info:  # the workers themselves run in parallel
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        # The loader takes batches from the workers round robin, starting with worker 0: it must be the next shard.
        if workers != max(1, self.num_workers):
            raise ValueError(f"{workers} processes read the stream, not {self.num_workers}")
        shard = self.rank * workers + (worker + self.consumed) % workers
        groups = [list(range(len(self.sources)))] if self.weights is None else [[n] for n in range(len(self.sources))]
        fresh = Position(block=0, index=0, cursors=[[0, 0, 0] for _ in groups], counts={}, examples=[])
        position = deepcopy(self.positions.get(shard, fresh))
        streams = [
            self._endless(group, cursor, shard, self.num_shards)
            for group, cursor in zip(groups, position["cursors"], strict=True)
        ]
        while True:
            before = deepcopy(position)
            rng = random.Random(f"{self.seed}/{shard}/{position['block']}")
            # A pass is an epoch. With weights, sources pass at different times, and each block is varied differently.
            epoch = before["cursors"][0][0] if self.weights is None else before["block"]
            batches = self._plan(self._block(streams, position), position, rng, epoch)
            first = before["index"]
            before["counts"], before["examples"] = position["counts"], position["examples"]
            position["block"], position["index"] = position["block"] + 1, 0
            for index in range(first, len(batches)):
                after = position if index + 1 == len(batches) else Position({**before, "index": index + 1})
                yield StreamedBatch(batches[index], shard, deepcopy(after))

    @property
    def num_shards(self) -> int:
        """Shards of all ranks."""
        return self.num_replicas * max(1, self.num_workers)

    def consume(self, batch: StreamedBatch) -> None:
        """Record that the model has consumed a micro-batch of this rank; the stream resumes after it."""
        self.consumed += 1
        self.positions[batch.shard] = batch.position

    def lines(self) -> list[str]:
        """The report of the rows that this rank has read, as text."""
        counts: Counter[str] = Counter()
        for position in self.positions.values():
            counts.update(position["counts"])
        examples = [case for position in self.positions.values() for case in position["examples"]]
        found = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in counts.items())
        return [f"train, streamed by this process: {found}", *(f"  {case}" for case in examples[:_MAX_EXAMPLES])]

    def position(self) -> dict[str, Any]:
        """This rank's position."""
        return {"consumed": self.consumed, "positions": dict(self.positions)}

    def state_dict(self, position: dict[str, Any] | None = None) -> dict[str, Any]:
        """The positions of all ranks' shards. A collective."""
        position = position or self.position()
        gathered = [position["positions"]]
        if self.num_replicas > 1:
            gathered = [{} for _ in range(self.num_replicas)]
            torch.distributed.all_gather_object(gathered, position["positions"])
        positions = {shard: one for by_shard in gathered for shard, one in by_shard.items()}
        return {"shards": self.num_shards, "consumed": position["consumed"], "positions": positions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a checkpoint's position.

        Raises:
            DataError: If the number of shards is different.
        """
        if state["shards"] != self.num_shards:
            workers, rest = divmod(state["shards"], self.num_replicas)
            advice = (
                f"use a number of ranks that divides {state['shards']}"
                if rest
                else f"set `--data.num_workers {workers}`"
            )
            raise DataError(
                f"the checkpoint's data was streamed by {state['shards']} processes (ranks × `data.num_workers`), but "
                f"this run has {self.num_shards}; {advice}"
            )
        self.consumed, self.positions = state["consumed"], dict(state["positions"])

    def _endless(self, group: Sequence[int], cursor: list[int], shard: int, shards: int) -> Iterator[Entry | None]:
        """Yield the shard's rows of some sources endlessly, and None after each pass; advances ``cursor``."""
        while True:
            for source in range(cursor[1], len(group)):
                for where, row in self.sources[group[source]].rows(shard + cursor[2] * shards, shards, stream=True):
                    cursor[2] += 1
                    yield group[source], where, row
                cursor[1:] = [source + 1, 0]
            cursor[:] = [cursor[0] + 1, 0, 0]
            yield None

    def _block(self, streams: Sequence[Iterator[Entry | None]], position: Position) -> list[Entry]:
        """Read the rows of the next block; without weights, a block ends with the pass."""
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

    def _plan(
        self, rows: list[Entry], position: Position, rng: random.Random, epoch: int
    ) -> list[list[list[Document]]]:
        """Plan the micro-batches of a block, in random order."""
        rng.shuffle(rows)
        report = RowReport()
        chunk = list(filter_rows(rows, self.sources, self.template, self.settings, report))
        documents: list[Any] = list(encode_documents(chunk, self.template, self.settings, report))
        self._count(report, position)
        documents[:] = augment_documents(documents, chunk, self.template, replace(self.settings, epoch=epoch))
        if self.packing:
            lengths = [len(document["input_ids"]) + len(document.get("rejected_ids") or ()) for document in documents]
            plan = plan_packs(lengths, self.settings.max_length)
            packs = [[documents[index] for index in pack] for pack in plan]
        else:
            packs = [[document] for document in documents]
        rng.shuffle(packs)
        return [packs[start : start + self.batch_size] for start in range(0, len(packs), self.batch_size)]

    def _count(self, report: RowReport, position: Position) -> None:
        """Add a block's report to the counts; raise if too many rows are unreadable or none is usable."""
        counts = position["counts"]
        if position["index"]:  # resumed within this block: it is already counted
            return
        found = {name: len(getattr(report, name)) for name in ("skipped", "flawed", "too_long", "cut")}
        for name, number in {"rows": report.rows, "documents": report.documents, **found}.items():
            counts[name] = counts.get(name, 0) + number
        cases = [f"{place} ({id}): {reason}" for place, id, reason in report.skipped + report.too_long]
        position["examples"] = [*position["examples"], *cases][:_MAX_EXAMPLES]
        examples = "".join(f"\n  {case}" for case in position["examples"])
        if counts["rows"] >= _MIN_ROWS and counts["skipped"] > self.max_unreadable * counts["rows"]:
            raise DataError(
                f"`data.train`: {counts['skipped']:,} of the first {counts['rows']:,} rows cannot be read, more than "
                f"{self.max_unreadable:.1%} (`data.max_unreadable`); first errors:{examples}"
            )
        if not counts["documents"] and (not report.rows or position["cursors"][0][0]):
            raise DataError(
                f"`data.train`: none of the {counts['rows']:,} rows of this process can be used; a stream needs "
                f"more rows than ranks × workers{examples}"
            )


@dataclass(frozen=True)
class StreamCollator:
    """Collates a streamed micro-batch, and passes its position on as ``stream``."""

    collator: PackingCollator

    def __call__(self, batch: Any) -> dict[str, Any]:
        """Collate the packs, and add ``stream``."""
        return {**self.collator(batch.packs), "stream": batch._replace(packs=[])}
