"""What decides which documents are trained on, in which order: a checkpoint can only be continued in the same one."""

from __future__ import annotations

from typing import Any

from fc_lightning.data.cache import digest_of_texts
from fc_lightning.data.prepare import digest_of
from fc_lightning.data.sources import DataError, weights_of

_SETTINGS = ("packing", "batch_size", "max_length", "seed", "streaming")


def order_of(data: Any) -> dict[str, Any]:
    """The settings of a data module, and a digest of its documents.

    Of a stream, which is not read beforehand, it is one of the files' names and sizes.
    """
    order = {name: getattr(data, name) for name in _SETTINGS}
    if data.streaming:
        sources = [source.outline() for source in data.sources["train"]]
        train = digest_of_texts([digest_of(data.template, data.preparation("train")), *sources])
        return {**order, "shuffle_buffer": data.shuffle_buffer, "train": train}
    weights = [str(weight) for weight in weights_of(data.sources["train"]) or []]
    return {**order, "train": digest_of_texts([data.prepared["train"].digest, *weights])}


def place_of(trainer: Any) -> dict[str, int]:
    """The epoch that a trainer is in, and how many micro-batches of it this rank's model has taken."""
    epoch = trainer.fit_loop.epoch_progress.current
    taken = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return {"epoch": epoch.processed, "batches": taken if epoch.started > epoch.processed else 0}


def check_order(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Compare a checkpoint's order with that of this run.

    Raises:
        DataError: If they differ; it says in what.
    """
    changed = [name for name in then if then[name] != now.get(name)]
    if changed:
        what = ", ".join(f"`data.{name}` {_shown(then[name])} then, {_shown(now.get(name))} now" for name in changed)
        raise DataError(f"the checkpoint's run trained on other data, or in another order, and cannot go on: {what}")


def _shown(value: Any) -> str:
    return f"sha256 {value[:12]}" if isinstance(value, str) else str(value)
