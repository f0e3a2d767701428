"""The order of the training data: a checkpoint can be resumed only with the same data in the same order."""

from __future__ import annotations

from typing import Any

from fc_lightning.data.cache import hash_texts
from fc_lightning.data.prepare import encoding_digest
from fc_lightning.data.sources import DataError, source_weights

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
    weights = [str(weight) for weight in source_weights(data.sources["train"]) or []]
    return {**order, "train": hash_texts([data.prepared["train"].digest, *weights])}


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
        what = ", ".join(f"`data.{name}` {_shown(then[name])} then, {_shown(now.get(name))} now" for name in changed)
        raise DataError(
            f"the checkpoint was trained on different data or in a different order and cannot be resumed: {what}"
        )


def _shown(value: Any) -> str:
    return f"sha256 {value[:12]}" if isinstance(value, str) else str(value)
