"""Epochs of augmented documents: each epoch's are prepared when it begins, and kept like all prepared data.

Because an epoch's documents depend on the seed, the row ids and its number alone, a resumed run finds or prepares the
same ones, and all ranks and machines plan the same packs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset

from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.conversation.parsing import dump_json
from fc_lightning.conversation.types import Conversation, Tool
from fc_lightning.data.augmentation import augment
from fc_lightning.data.batches import lengths_of
from fc_lightning.data.encoding import Preparation, documents_of
from fc_lightning.data.row_report import RowReport
from fc_lightning.data.samplers import MicroBatch, MicroBatchSampler
from fc_lightning.data.tool_pool import ToolPool

_SPARE_PACKS = 1.01  # augmented documents vary in length from epoch to epoch, and so does the number of packs


def tool_pool(conversations: Sequence[Conversation], template: ChatTemplate) -> ToolPool:
    """The tools of some conversations, with the number of tokens that each takes in a prompt."""
    backend = template.tokenizer.backend_tokenizer

    def num_tokens(tool: Tool) -> int:
        return len(backend.encode(dump_json(tool.to_openai()["function"]), add_special_tokens=False).ids)

    return ToolPool(conversations, num_tokens)


def augmented_documents(
    chunk: Sequence[tuple[int, str, Conversation]],
    documents: Sequence[dict[str, Any]],
    template: ChatTemplate,
    how: Preparation,
) -> list[dict[str, Any]]:
    """The documents of a block of rows, with the augmented ones of an epoch in their places.

    A row whose augmented document is too long keeps its own: augmentation loses no row.

    Args:
        chunk: The rows, each with the number of its source and its place; distractors are drawn from among them.
        documents: The documents of the same rows without augmentation.
        template: Renders and encodes.
        how: Has the augmentation, its seed and the epoch.
    """
    assert how.augmentation is not None
    pool = tool_pool([conversation for _, _, conversation in chunk], template)
    varied = []
    for source, place, conversation in chunk:
        augmented = augment(conversation, how.augmentation, pool, how.augmentation_seed, how.epoch)
        if augmented is not conversation:
            varied.append((source, place, augmented))
    encoded = documents_of(varied, template, replace(how, too_long="drop"), RowReport())
    by_place = {document["place"]: document for document in encoded}
    return [by_place.get(document["place"], document) for document in documents]


class AugmentedSampler(MicroBatchSampler):
    """Plans each epoch from the lengths that its documents have; yields micro-batches with their epoch's folder.

    Every epoch has the same number of packs, one in a hundred more than the first needs, so that a few longer documents
    find room; where still more would be needed, the documents that are too many are left out of that epoch.

    Args:
        folder_of: The prepared folder of an epoch's documents.
        open_folder: Opens the documents of a folder.
        options: See :class:`fc_lightning.data.samplers.MicroBatchSampler`, without ``lengths``.
    """

    def __init__(self, folder_of: Callable[[int], Path], open_folder: Callable[[Path], Dataset], **options: Any):
        self._folder_of, self._open_folder = folder_of, open_folder
        self._planned = 0
        super().__init__(lengths=self._lengths_in(0), **options)
        if self.capacity is not None:
            self._num_packs = math.ceil(_SPARE_PACKS * len(super().plan_packs(0)))

    def plan(self) -> list[MicroBatch]:
        """All ranks' micro-batches of the epoch, in order."""
        if self._planned != self.epoch:
            self.lengths, self._planned = self._lengths_in(self.epoch), self.epoch
        return super().plan()

    def __iter__(self) -> Iterator[Any]:
        folder = str(self._folder_of(self.epoch))
        return ((folder, batch) for batch in super().__iter__())

    def _lengths_in(self, epoch: int) -> Sequence[int]:
        return lengths_of(self._open_folder(self._folder_of(epoch)))


class EpochPacks(TorchDataset):
    """Documents by packs: an index is the folder of an epoch's documents, and a micro-batch of document numbers.

    Worker processes that live on from epoch to epoch open the next folder when they are given it.
    """

    def __init__(self, open_folder: Callable[[Path], Dataset]):
        self._open_folder = open_folder
        self._opened: tuple[str, Any] = ("", None)

    def __getitem__(self, index: tuple[str, MicroBatch]) -> list[list[Any]]:
        folder, packs = index
        if folder != self._opened[0]:
            self._opened = (folder, self._open_folder(Path(folder)))
        documents = self._opened[1]
        return [[documents[document] for document in pack] for pack in packs]
