"""Epochs of augmented documents: prepared when the epoch begins, and cached like all prepared data.

The documents of an epoch depend only on the seed, the row ids and the number of the epoch, so a resumed run finds or
prepares the same ones, and all ranks plan the same packs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import Dataset as TorchDataset

from fc_lightning.data.dataloaders import token_counts
from fc_lightning.data.prepare import load_prepared
from fc_lightning.data.samplers import MicroBatch, MicroBatchSampler

_SPARE_PACKS = 1.01  # lengths of augmented documents, and so the number of packs, differ between epochs


class AugmentedSampler(MicroBatchSampler):
    """Plans each epoch with the lengths of its documents; a micro-batch comes with the folder of the epoch.

    Every epoch has the same number of packs: one percent more than the first needs, to leave room for longer documents.
    If an epoch needs more, the documents that do not fit are skipped, with a warning that counts them.

    Args:
        prepare_epoch: Prepares the documents of an epoch unless they are cached; returns their folder.
        options: Arguments of :class:`MicroBatchSampler`, without ``lengths``.
    """

    def __init__(self, prepare_epoch: Callable[[int], Path], **options: Any):
        self.prepare_epoch = prepare_epoch
        self._planned_epoch = 0
        super().__init__(lengths=token_counts(open_documents(prepare_epoch(0))), **options)
        if self.capacity is not None:
            self._num_packs = math.ceil(_SPARE_PACKS * self.count_packs())

    def plan(self) -> list[MicroBatch]:
        """All ranks' micro-batches of the epoch, in order."""
        is_new = self._planned_epoch != self.epoch
        if is_new:
            self._planned_epoch = self.epoch
            self.lengths = token_counts(open_documents(self.prepare_epoch(self.epoch)))
        plan = super().plan()
        num_left_out = len(self.lengths) - len({document for batch in plan for pack in batch for document in pack})
        if is_new and num_left_out and not self.weights:  # weights leave documents out on purpose
            rank_zero_warn(f"epoch {self.epoch}: {num_left_out:,} augmented documents do not fit into its packs")
        return plan

    def __iter__(self) -> Iterator[Any]:
        folder = str(self.prepare_epoch(self.epoch))
        return ((folder, batch) for batch in super().__iter__())


class EpochDataset(TorchDataset):
    """Packs of documents: an index is the folder of an epoch and a micro-batch.

    Workers persist across epochs: they open the next folder when its first micro-batch is requested.
    """

    def __init__(self) -> None:
        self._folder = ""
        self._documents: Any = None

    def __getitem__(self, index: tuple[str, MicroBatch]) -> list[list[Any]]:
        folder, packs = index
        if folder != self._folder:
            self._folder, self._documents = folder, open_documents(Path(folder))
        return [[self._documents[document] for document in pack] for pack in packs]


def open_documents(folder: Path) -> Dataset:
    """The documents of a prepared folder, memory-mapped."""
    return load_prepared(folder).documents
