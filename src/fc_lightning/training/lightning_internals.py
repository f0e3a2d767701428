"""Every use of a private name of Lightning, each with its reason.

Because of this file, ``lightning`` has an upper bound in ``pyproject.toml``: a new minor version may rename any of
them. ``tests/repo/test_private_names.py`` finds private names that are used elsewhere.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.utilities import rank_zero_only

REQUEUE = "requeue"  # what SLURM's requeue signal is recorded as; other signals are recorded as themselves
_LOGGED_STEPS = "_batches_that_stepped"


def attached_trainer(module: LightningModule) -> Trainer | None:
    """The trainer of a module, None if it has none: the public property raises an error."""
    return module._trainer


def cluster_environment(trainer: Trainer) -> Any:
    """The cluster environment, which the public API shows for some strategies only."""
    return trainer._accelerator_connector.cluster_environment


def keep_samplers(trainer: Trainer) -> None:
    """Set ``use_distributed_sampler: false`` after the trainer was made: the data module shards the data itself."""
    trainer._accelerator_connector.use_distributed_sampler = False


# Loggers


def fixed_version(logger: Logger | None) -> int | str | None:
    """The version that the configuration names: the public property makes one up, and a folder of that name."""
    return getattr(logger, "_version", None)


def set_version(logger: Logger, version: int | str) -> None:
    """Make a logger write to the folder of an existing run; the constructor is the only public way."""
    logger._version = version


def reserve_version(logger: Logger) -> None:
    """Make a logger create the folder of its run when it chooses the version.

    Lightning only looks which versions exist, so two runs that start at the same time choose the same.
    """
    choose = getattr(logger, "_get_next_version", None)
    if choose is None or "://" in str(logger.root_dir):
        return

    def reserve() -> int:
        version = choose()
        while rank_zero_only.rank == 0:
            try:
                (Path(logger.root_dir) / f"version_{version}").mkdir(parents=True)
                break
            except FileExistsError:
                version += 1
            except OSError:
                break  # reported when the run writes its first file
        return version

    logger._get_next_version = reserve


def use_csv_writer(logger: CSVLogger, writer_class: type[ExperimentWriter]) -> None:
    """Replace the class that writes ``metrics.csv``: its name is fixed in :class:`CSVLogger`."""
    if type(logger._experiment) is ExperimentWriter:
        logger._experiment.__class__ = writer_class


def metrics_to_log(trainer: Trainer) -> dict[str, float] | None:
    """The metrics that Lightning logs right after the callbacks of this batch's end, None if it logs none."""
    connector = trainer._logger_connector
    if trainer.fit_loop._should_accumulate() or not connector.should_update_logs:
        return None
    return {name: float(value) for name, value in connector.metrics["log"].items()}


def update_bar_metrics(bar: RichProgressBar, trainer: Trainer, module: LightningModule) -> None:
    """Show new metrics immediately: Lightning would wait for the next batch."""
    bar._update_metrics(trainer, module)


def stop_bar(bar: RichProgressBar) -> None:
    """End a terminal's bar: Lightning keeps it until teardown, and its last redraw overwrites what follows."""
    bar._stop_progress()


# Loops


def subcommand_parsers(cli: LightningCLI) -> dict[str, LightningArgumentParser]:
    """The parser of each subcommand: the public parser only parses, and nothing public lists their keys."""
    return cli._subcommand_parsers


def set_logged_steps(trainer: Trainer, num_steps: int) -> None:
    """Correct the step that metrics are logged at, which is off by one in a resumed run."""
    setattr(trainer.fit_loop.epoch_loop, _LOGGED_STEPS, num_steps)


def set_saved_logged_steps(fit_loop: dict[str, Any], num_steps: int) -> None:
    """The same in the saved state of the fit loop."""
    fit_loop["epoch_loop.state_dict"][_LOGGED_STEPS] = num_steps


def is_validation_due(trainer: Trainer) -> bool:
    """Whether a validation follows this training batch; no public property says so."""
    return trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)


def finish_restarted_epoch(trainer: Trainer) -> bool:
    """End an epoch immediately if the run resumes after its last batch and no validation is due there.

    Lightning would train on another batch first. Returns whether :func:`end_restart` must follow when the epoch ends.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    at_end = epoch_loop.restarting and epoch_loop.batch_progress.is_last_batch
    if not at_end or epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
        return False
    epoch_loop.val_loop._has_run = True
    return True


def end_restart(trainer: Trainer) -> None:
    """Undo :func:`finish_restarted_epoch`, and make the next epoch start like any other."""
    epoch_loop = trainer.fit_loop.epoch_loop
    epoch_loop.val_loop._has_run = False
    epoch_loop.restarting = False
    epoch_loop.on_iteration_done()


def restart_data_iterator(trainer: Trainer) -> None:
    """Fetch training data from its new position: Lightning may have made the iterator before it was restored."""
    iter(trainer.fit_loop._data_fetcher)


# Processes and signals


class SubprocessLauncher(_SubprocessScriptLauncher):
    """Lightning's launcher for a rank per process; its base class has no public name."""

    def start_ranks(self) -> None:
        """Start the processes of the other ranks, without starting to watch them."""
        self._call_children_scripts()


def replace_launcher(trainer: Trainer, launcher_class: type[SubprocessLauncher]) -> None:
    """Replace a strategy's launcher: strategies make theirs themselves."""
    launcher = trainer.strategy.launcher
    if type(launcher) is _SubprocessScriptLauncher:
        replacement = launcher_class(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
        trainer.strategy._launcher = replacement


def has_unsupported_sharding(trainer: Trainer) -> bool:
    """Whether ranks share their rows (tensor parallelism, Lightning's default), or checkpoints are folders."""
    strategy = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy):
        return False
    return strategy._tensor_parallel_size != 1 or strategy._save_distributed_checkpoint


def starts_processes_from_memory(trainer: Trainer) -> bool:
    """Whether a strategy forks or spawns its processes, which only the class of its launcher shows."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


class SignalRecorder(_SignalConnector):
    """Lightning's signal handlers, reduced to recording the signal.

    Lightning's own handlers run collectives and write checkpoints while another rank may be in the middle of a step,
    which can deadlock. A data worker that is asked to terminate a second time exits with ``worker_exit_code``.
    """

    def __init__(self, trainer: Trainer, worker_exit_code: int):
        super().__init__(trainer)
        self.received: dict[Any, int] = {}
        self.worker_exit_code = worker_exit_code
        self._main_process = os.getpid()

    def register_signal_handlers(self) -> None:
        """Install the handlers. Lightning calls it when its loops begin, and restores the old ones when they end."""
        self.received.clear()
        super().register_signal_handlers()
        self._register_signal(signal.SIGINT, self._sigterm_notifier_fn)

    def _sigterm_notifier_fn(self, signum: int, frame: FrameType | None) -> None:
        is_repeated = signum in self.received
        self.received[signum] = signum
        if os.getpid() != self._main_process:
            # In a data worker, the first signal may be one sent to the whole process group before the rank has
            # stopped; a second one comes from the rank.
            if is_repeated and signum == signal.SIGTERM:
                os._exit(self.worker_exit_code)
        elif is_repeated and signum == signal.SIGINT:
            raise KeyboardInterrupt

    def _slurm_sigusr_handler_fn(self, signum: int, frame: FrameType | None) -> None:
        self.received[REQUEUE] = signum


def record_signals(trainer: Trainer, worker_exit_code: int) -> None:
    """Replace Lightning's signal handlers by :class:`SignalRecorder`, and its exchange of signals by none.

    Lightning synchronizes the device and all ranks before each micro-batch to learn what we exchange once per step.
    """
    if not isinstance(trainer._signal_connector, SignalRecorder):
        trainer._signal_connector = SignalRecorder(trainer, worker_exit_code)
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def received_signals(trainer: Trainer) -> dict[Any, int]:
    """What :class:`SignalRecorder` has recorded on this rank."""
    return trainer._signal_connector.received
