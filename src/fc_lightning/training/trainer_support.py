"""Which settings and callbacks of Lightning work here, and why the others are refused before training.

The tests go through both lists, and the table in the documentation is made from them.
"""

from __future__ import annotations

from typing import NamedTuple

from lightning import Trainer
from lightning.pytorch import callbacks as lightning_callbacks

from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.training.lightning_internals import keep_samplers, starts_processes_from_memory
from fc_lightning.training.optimization import SettingsError


class Supported(NamedTuple):
    """Something of Lightning that works.

    Attributes:
        name: Of a key under ``trainer``, or of a callback.
        note: What to know about it.
    """

    name: str
    note: str = ""


SETTINGS = [
    Supported("fast_dev_run", "writes no checkpoints"),
    Supported("limit_train_batches, limit_val_batches", "counts and shares"),
    Supported("val_check_interval", "counts and shares; longer than an epoch with `check_val_every_n_epoch: null`"),
    Supported("max_time", "the run ends like one that has reached `max_steps`, and can be resumed"),
    Supported("profiler"),
    Supported("detect_anomaly"),
    Supported("deterministic"),
    Supported("enable_checkpointing: false", "removes the default checkpoint callbacks"),
    Supported("logger: false", "checkpoints go to `default_root_dir/checkpoints`"),
    Supported("sync_batchnorm", "without effect: these models have no batch norm"),
    Supported("reload_dataloaders_every_n_epochs"),
    Supported("plugins", "an own `CheckpointIO` replaces the atomic one"),
    Supported("num_nodes", "with one start per node, as torchrun and SLURM do"),
]
CALLBACKS = [
    Supported("EarlyStopping", "a metric that is not logged ends the run with one line"),
    Supported("ModelCheckpoint", "on every logged metric, several of them"),
    Supported("Timer", "with `interval: step` or `epoch` in YAML"),
    Supported("RichProgressBar", "instead of `ProgressBar`"),
    Supported("RichModelSummary"),
    Supported("DeviceStatsMonitor"),
    Supported("OnExceptionCheckpoint"),
    Supported("LearningRateMonitor"),
]
_AVERAGE = "it averages a copy of the whole model; use `fc_lightning.callbacks.EMA`, which averages the trained weights"
REFUSED_CALLBACKS: dict[str, str] = {
    "StochasticWeightAveraging": _AVERAGE,
    "WeightAveraging": _AVERAGE,
    "EMAWeightAveraging": _AVERAGE,
    "LearningRateFinder": "it expects the mean loss of a batch, and here it is the sum; set `model.learning_rate`",
    "BatchSizeFinder": "batches are planned by tokens; set `data.max_length` and `data.batch_size`",
    "GradientAccumulationScheduler": "the learning rate needs the number of steps in advance; set "
    "`trainer.accumulate_grad_batches`",
    "ModelPruning": "it renames the weights, so that no checkpoint or export fits the model",
    "BackboneFinetuning": "an adapter freezes the base for good; `model.peft: null` trains every weight",
}


def check_trainer(trainer: Trainer) -> None:
    """Refuse what cannot work with this package, before anything is loaded, and keep the data module's samplers.

    Raises:
        SettingsError: With what to do instead.
    """
    for callback in trainer.callbacks:
        for name, reason in REFUSED_CALLBACKS.items():
            if type(callback) is getattr(lightning_callbacks, name):
                raise SettingsError(f"trainer.callbacks: {name} does not work here: {reason}")
    if isinstance(trainer.datamodule, FunctionCallingDataModule):
        keep_samplers(trainer)
    if trainer.overfit_batches:
        raise SettingsError(
            "trainer.overfit_batches does not work here: each epoch has a plan of its own; give the source in "
            "`data.train` a `limit`, and raise `trainer.max_epochs`"
        )
    check_launcher(trainer)


def check_launcher(trainer: Trainer) -> None:
    """Refuse strategies that fork or spawn processes. The command line does it before it starts any.

    Raises:
        SettingsError: With what to do instead.
    """
    if starts_processes_from_memory(trainer):
        raise SettingsError(
            "trainer.strategy: processes are started with the command, not from memory; use `ddp` instead of "
            "`ddp_spawn`, `ddp_fork` or `ddp_notebook`"
        )
