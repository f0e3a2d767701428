"""Callbacks, one file each. Any callback that defines ``on_tool_calls_evaluated`` receives the evaluated turns."""

from fc_lightning.callbacks.adapter import SaveAdapter
from fc_lightning.callbacks.ema import EMA
from fc_lightning.callbacks.failures import Failures
from fc_lightning.callbacks.last_checkpoint import LastCheckpoint
from fc_lightning.callbacks.loggers import ExtraLogger, TensorBoard
from fc_lightning.callbacks.predictions import PredictionWriter
from fc_lightning.callbacks.preemption import Preemption
from fc_lightning.callbacks.progress import ProgressBar
from fc_lightning.callbacks.report import EvaluationReport
from fc_lightning.callbacks.resumable import Resumable
from fc_lightning.callbacks.samples import SampleTable
from fc_lightning.callbacks.summary import RunSummary
from fc_lightning.callbacks.throughput import Throughput

__all__ = [
    "EMA",
    "EvaluationReport",
    "ExtraLogger",
    "Failures",
    "LastCheckpoint",
    "PredictionWriter",
    "Preemption",
    "ProgressBar",
    "Resumable",
    "RunSummary",
    "SampleTable",
    "SaveAdapter",
    "TensorBoard",
    "Throughput",
]
