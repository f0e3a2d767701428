"""Hides log lines and warnings of libraries that users cannot act on. It imports nothing heavy."""

from __future__ import annotations

import logging
import re
import warnings

# Warnings, by the beginning of their message.
_WARNINGS = (
    r".*gradient_checkpointing(_enable)?. is deprecated",
    r".*isinstance\(treespec, LeafSpec\). is deprecated",
    r".*loftq_config. specified but will be ignored",
    r".*recommended to use .self\.log\(.*sync_dist=True",  # metrics here are sums over all ranks already
    r".*broadcast_buffers",
    r".*dirpath has changed",  # a run that was moved, or validated from elsewhere
    r".*does not have many workers",  # prepared data is memory-mapped
    r".*Checkpoint directory .* exists and is not empty",
    r".*You're resuming from a checkpoint that ended before the epoch ended",  # the data module restores its position
)
# Lines of loggers; a filter counts for one logger alone, not for those below it.
_LOGGERS = {
    "bitsandbytes.backends.cpu.ops": "gemm_4bit",
    "lightning.fabric.utilities.seed": "Seed set to",
    "lightning.fabric.utilities.distributed": "Initializing distributed",
    "lightning.pytorch.utilities.rank_zero": (
        r"(GPU|TPU|HPU) available|litlogger|litmodels|Loading `train_dataloader` to estimate|Automatic Mixed Precision"
        r"|distributed_backend=|All distributed processes registered|Restor(ing|ed) .*states|Loaded model weights"
        r"|`Trainer.fit` stopped: `max_(epochs|steps)="  # the summary says it; a bar would be redrawn over it
    ),
    "lightning.fabric.utilities.rank_zero": r"distributed_backend=|All distributed processes registered",
    "lightning.pytorch.accelerators.cuda": "LOCAL_RANK",
    "lightning.pytorch.trainer.connectors.checkpoint_connector": "`weights_only` was not set",
}


def silence() -> None:
    """Hide them; call it before the libraries are imported, which log while they are."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message)
    for name, pattern in _LOGGERS.items():
        logger = logging.getLogger(name)
        if not any(isinstance(one, _Hide) for one in logger.filters):
            logger.addFilter(_Hide(pattern))


class _Hide(logging.Filter):
    def __init__(self, pattern: str):
        super().__init__()
        self._pattern = re.compile(pattern)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is shown."""
        return not self._pattern.search(record.getMessage())
