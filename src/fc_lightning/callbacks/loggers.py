"""TensorBoard and ExtraLogger: further loggers beside the one that makes the run's folder."""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger


class TensorBoard(Callback):
    """Writes TensorBoard's files into the run's folder as well: ``tensorboard --logdir runs``."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add the logger."""
        folder = trainer.log_dir  # asks all ranks
        if folder and not any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
            trainer.loggers = [*trainer.loggers, TensorBoardLogger(folder, name="", version="")]


class ExtraLogger(Callback):
    """Logs to another logger too, while the run's folder stays where the first logger puts it.

    Args:
        logger: Any logger of Lightning, or :class:`fc_lightning.training.loggers.Trackio`.
    """

    def __init__(self, logger: Logger):
        self.logger = logger

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add the logger."""
        if self.logger not in trainer.loggers:
            trainer.loggers = [*trainer.loggers, self.logger]
