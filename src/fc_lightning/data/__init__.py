"""Data: sources, row formats, preparation with its cache, and the DataModule."""

from fc_lightning.data.datamodule import FunctionCallingDataModule
from fc_lightning.data.sources import DataError, Source

__all__ = ["DataError", "FunctionCallingDataModule", "Source"]
