"""TensorBoard and ExtraLogger: more loggers in addition to the one that creates the run's folder."""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger


class TensorBoard(Callback):
    """Also writes TensorBoard files to the run's folder: ``tensorboard --logdir runs``."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = trainer.log_dir  # a collective
        if folder and not any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
            trainer.loggers = [*trainer.loggers, TensorBoardLogger(folder, name="", version="")]


class ExtraLogger(Callback):
    """Also logs to another logger; the run's folder remains that of the first logger.

    Args:
        logger: Any logger of Lightning, or :class:`fc_lightning.training.loggers.Trackio`.
    """

    def __init__(self, logger: Logger):
        self.logger = logger

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.logger not in trainer.loggers and not trainer.fast_dev_run:
            trainer.loggers = [*trainer.loggers, self.logger]
