"""Lightning settings and callbacks that are supported, and the reasons why others are rejected before training.

The tests go through both lists, and the tables in the documentation are generated from them.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from lightning import Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.environments import LightningEnvironment

from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.data.collator import next_power_of_two
from fc_lightning.training.lightning_internals import (
    has_unsupported_sharding,
    keep_samplers,
    starts_processes_from_memory,
)
from fc_lightning.training.optimization import SettingsError

_MANY_RANKS = 8  # that any machine may have


class Supported(NamedTuple):
    """A supported setting or callback.

    Attributes:
        name: Name of a key under ``trainer``, or of a callback.
        note: Limitations or hints.
    """

    name: str
    note: str = ""


SETTINGS = [
    Supported("fast_dev_run", "writes no files"),
    Supported("limit_train_batches, limit_val_batches", "integers and fractions; the same for test and predict"),
    Supported(
        "val_check_interval", "integers and fractions; longer than an epoch with `check_val_every_n_epoch: null`"
    ),
    Supported(
        "max_time", "next to `max_steps` or `max_epochs`; training stops as if they were reached, and can be resumed"
    ),
    Supported("profiler"),
    Supported("barebones", "without the default logger and the default callbacks that it excludes"),
    Supported("detect_anomaly"),
    Supported("deterministic"),
    Supported("enable_checkpointing: false", "removes the default checkpoint callbacks"),
    Supported("logger: false", "checkpoints go to `default_root_dir/checkpoints`"),
    Supported("sync_batchnorm", "has no effect: these models have no batch norm"),
    Supported("reload_dataloaders_every_n_epochs"),
    Supported("plugins", "your own `CheckpointIO` replaces the atomic one"),
    Supported("num_nodes", "launch the command once per node, as torchrun and SLURM do"),
    Supported("strategy: ddp", "and so does FSDP2; see [Scaling](scaling.md)"),
]
UNSUPPORTED_SETTINGS = {
    "overfit_batches": "every epoch is packed differently; set `limit` on the source in `data.train` and raise "
    "`trainer.max_epochs`",
    "strategy: ddp_spawn, ddp_fork, ddp_notebook": "processes are started by running the command again; use `ddp`",
}
CALLBACKS = [
    Supported("EarlyStopping", "monitoring a metric that is not logged stops the run with a one-line error"),
    Supported("ModelCheckpoint", "can monitor any logged metric; several can be used at once"),
    Supported("Timer", "with `interval: step` or `epoch` in YAML"),
    Supported("RichProgressBar", "instead of `ProgressBar`"),
    Supported("RichModelSummary"),
    Supported("DeviceStatsMonitor"),
    Supported("OnExceptionCheckpoint", "the next `fit` resumes from its file automatically"),
    Supported("LearningRateMonitor"),
]
_AVERAGE = "it averages a copy of the whole model; use `fc_lightning.callbacks.EMA`, which averages the trained weights"
UNSUPPORTED_CALLBACKS: dict[str, str] = {
    "StochasticWeightAveraging": _AVERAGE,
    "EMAWeightAveraging": _AVERAGE,  # before the class that it is derived from
    "WeightAveraging": _AVERAGE,
    "LearningRateFinder": "it expects the mean loss of a batch, but `training_step` returns the sum; set "
    "`model.learning_rate`",
    "BatchSizeFinder": "batches are planned by tokens; set `data.max_length` and `data.batch_size`",
    "GradientAccumulationScheduler": "the learning rate needs the number of steps in advance; set "
    "`trainer.accumulate_grad_batches`",
    "ModelPruning": "it renames the weights, so checkpoints and exports would not match the model",
    "BackboneFinetuning": "the base stays frozen under an adapter; `model.peft: null` trains every weight",
}


def check_trainer(trainer: Trainer) -> None:
    """Reject unsupported settings and callbacks before anything is loaded, and keep the data module's samplers."""
    for callback in trainer.callbacks:
        for name, reason in UNSUPPORTED_CALLBACKS.items():
            if isinstance(callback, getattr(lightning_callbacks, name)):
                raise SettingsError(f"trainer.callbacks: {name} is not supported: {reason}")
    if isinstance(trainer.datamodule, FunctionCallingDataModule):
        keep_samplers(trainer)
    _check_processes(trainer)
    if has_unsupported_sharding(trainer):
        raise SettingsError(
            "trainer.strategy: ModelParallelStrategy needs `tensor_parallel_size: 1`, the number of processes as "
            "`data_parallel_size`, and `save_distributed_checkpoint: false`, as in configs/trainer/fsdp2.yaml"
        )
    found = {
        "overfit_batches": bool(trainer.overfit_batches),
        "strategy: ddp_spawn, ddp_fork, ddp_notebook": starts_processes_from_memory(trainer),
    }
    for name, reason in UNSUPPORTED_SETTINGS.items():
        if found[name]:
            raise SettingsError(f"trainer.{name} is not supported: {reason}")


def tokens_per_micro_batch(trainer: Trainer | None) -> int:
    """The most tokens that a micro-batch of a run has on a GPU; 0 if that is not known."""
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, FunctionCallingDataModule):
        return 0
    # Rows that are not packed are padded to powers of two.
    return data.batch_size * (data.max_length if data.packing else next_power_of_two(data.max_length))


def _check_processes(trainer: Trainer) -> None:
    """Reject runs that would wait for processes that never start, and flex attention on a CPU."""
    cores, on_cpu = os.cpu_count() or 1, isinstance(trainer.accelerator, CPUAccelerator)
    if on_cpu and trainer.num_devices > max(cores, _MANY_RANKS):
        raise SettingsError(
            f"trainer.devices: {trainer.num_devices} processes are too many for the {cores} cores of this machine"
        )
    environment = getattr(trainer.strategy, "cluster_environment", None)
    is_alone = isinstance(environment, LightningEnvironment) and "MASTER_ADDR" not in os.environ
    if trainer.num_nodes > 1 and is_alone:
        raise SettingsError(
            "trainer.num_nodes: the address of the main node is not set; start the run with torchrun or srun, or set "
            "MASTER_ADDR, MASTER_PORT and NODE_RANK"
        )
    attention = getattr(trainer.lightning_module, "attn_implementation", None)
    if on_cpu and attention == "flex_attention" and trainer.state.fn == "fit":
        raise SettingsError("model.attn_implementation: flex_attention does not support training on a CPU; use `auto`")
