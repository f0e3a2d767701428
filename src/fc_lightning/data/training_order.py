"""The order of the training data, and the position in it: a checkpoint resumes with the same data in the same order."""

from __future__ import annotations

from typing import Any

from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info

from fc_lightning.data.cache import hash_texts
from fc_lightning.data.prepare import encoding_digest
from fc_lightning.data.samplers import MicroBatchSampler
from fc_lightning.data.sources import DataError, source_weights
from fc_lightning.data.streaming import StreamingPacks

_SETTINGS = ("packing", "batch_size", "max_length", "seed", "streaming")


def training_order(data: Any) -> dict[str, Any]:
    """The settings that determine the order, with a digest of the documents.

    A stream is not read in advance: its digest covers the files' names and sizes.
    """
    order = {name: getattr(data, name) for name in _SETTINGS}
    if data.streaming:
        sources = [source.quick_fingerprint() for source in data.sources["train"]]
        train = hash_texts([encoding_digest(data.template, data.preparation("train")), *sources])
        return {**order, "shuffle_buffer": data.shuffle_buffer, "train": train}
    more = [str(weight) for weight in source_weights(data.sources["train"]) or []]
    more += [] if data.augmentation is None else [repr(data.augmentation)]
    return {**order, "train": hash_texts([data.prepared["train"].digest, *more])}


def training_position(trainer: Any) -> dict[str, int]:
    """The current epoch, and the number of its micro-batches that this rank has consumed."""
    epoch = trainer.fit_loop.epoch_progress.current
    consumed = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return {"epoch": epoch.processed, "batches": consumed if epoch.started > epoch.processed else 0}


def check_training_order(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Compare a checkpoint's order with the order of this run.

    Raises:
        DataError: If they differ, with the settings that do.
    """
    changed = [name for name in then if then[name] != now.get(name)]
    if changed:
        what = ", ".join(f"`data.{name}` was {_shown(then[name])}, now {_shown(now.get(name))}" for name in changed)
        raise DataError(
            f"the checkpoint was trained on different data or in a different order and cannot be resumed: {what}"
        )


def _shown(value: Any) -> str:
    return f"sha256 {value[:12]}" if isinstance(value, str) else str(value)


class ResumableDataModule(LightningDataModule):
    """A data module that continues where a checkpoint was written.

    Attributes:
        trainer: Lightning's trainer.
        sources: The sources of each split.
    """

    sources: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self._stream: StreamingPacks | None = None
        self._sampler: MicroBatchSampler | None = None
        self._resumed: dict[str, Any] = {}  # this module's state in the checkpoint

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Record a consumed batch: a stream resumes after consumed batches, not prefetched ones."""
        if self._stream is not None and isinstance(batch, dict) and (stream := batch.pop("stream", None)):
            self._stream.consume(stream)
        return batch

    def position(self) -> dict[str, Any]:
        """This rank's position in the training data: after the consumed micro-batches, prefetched ones not counted."""
        return {"stream": self._stream.position()} if self._stream else training_position(self.trainer)

    def state_dict(self, position: dict[str, Any] | None = None) -> dict[str, Any]:
        """State for a checkpoint: the data trained on, and the position in it. A collective."""
        if not (self._stream or self._sampler):
            return {}
        position = position or self.position()
        if self._stream:
            position = {"stream": self._stream.state_dict(position["stream"])}
        return {**position, "ranks": self._world_size, "order": training_order(self)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at a checkpoint's position.

        Raises:
            DataError: If the training data or its order is different.
        """
        if self.trainer and self.trainer.state.fn != "fit":
            return
        check_training_order(state_dict.get("order", {}), training_order(self))
        self._resumed = state_dict
        if self._sampler or self._stream:  # with sharded weights, checkpoints are read after the loader is created
            self._restore_position()

    def _restore_position(self) -> None:
        if self._stream is not None and "stream" in self._resumed:
            self._stream.load_state_dict(self._resumed["stream"])
        elif self._sampler is not None and "epoch" in self._resumed:
            self._sampler.resume(self._resumed["epoch"], self._resumed["batches"] * self._resumed["ranks"])

    def teardown(self, stage: str | None = None) -> None:
        """Print the report of streamed rows."""
        if self._stream is not None and stage == "fit":
            rank_zero_info("\n".join(self._stream.lines()))

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0
