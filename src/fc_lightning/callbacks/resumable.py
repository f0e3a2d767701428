"""Resumable: an interrupted run continues exactly as if it had not been interrupted."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from filelock import FileLock, Timeout
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_info

from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.training import slurm
from fc_lightning.training.checkpoint_io import AtomicCheckpointIO, CheckpointError, last_checkpoint, read_checkpoint
from fc_lightning.training.leftovers import remove_surplus
from fc_lightning.training.lightning_internals import (
    end_restart,
    finish_restarted_epoch,
    fixed_version,
    restart_data_iterator,
    set_logged_steps,
    set_version,
)
from fc_lightning.training.resume import (
    METRICS_FILE,
    LoopPosition,
    TrainingPosition,
    current_position,
    get_rng_states,
    loop_position,
    num_metric_rows,
    pending_metrics,
    reopen_metrics,
    rescale_batches,
    rewind,
    set_rng_states,
    truncate_metrics,
)
from fc_lightning.training.run_folders import checkpoint_folders, search_root
from fc_lightning.utils.atomic_files import wrap_os_errors

_KEY = "resumable"
_LOCK_TIMEOUT = 20.0  # seconds; the data workers of a killed process live on for a while


class Resumable(Callback):
    """Makes every checkpoint describe the end of an optimizer step, and resumes bit-exactly.

    A checkpoint that is written within a step (by a validation between two accumulated micro-batches, for example)
    describes the end of the previous step, with the data position and RNG states at that point. A validation that was
    due and had not completed runs when the run resumes. Validation does not affect the training RNG state. With a
    different number of ranks, accumulation is adjusted so that the steps stay the same.

    The command line always adds this callback.
    """

    def __init__(self) -> None:
        self._position: TrainingPosition | None = None  # at the end of the last optimizer step
        self._resumed: dict[str, Any] = {}
        self._resumed_at_epoch_end = False
        self._validated: LoopPosition | None = None
        self._rng_before_validation: dict[str, Any] | None = None
        self._lock: FileLock | None = None
        self.resumes_in_place = False  # whether the run continues in its own folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = getattr(trainer.logger, "log_dir", None)
        if stage == "fit" and folder is not None and trainer.is_global_zero:
            self.lock_folder(Path(folder))

    def resume_in_place(self, logger: Logger | None, is_global_zero: bool) -> None:
        """Keep the contents of the run's folder. Must be called before Lightning opens the logger."""
        self.resumes_in_place = True
        if is_global_zero and isinstance(logger, CSVLogger):
            self.lock_folder(Path(logger.log_dir))
            reopen_metrics(logger)

    def lock_folder(self, folder: Path) -> None:
        """Lock a run's folder until the process ends.

        Raises:
            CheckpointError: If another process holds the lock.
        """
        if self._lock is not None:
            return
        self._lock = FileLock(folder / ".lock")
        try:
            with wrap_os_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                self._lock.acquire(timeout=_LOCK_TIMEOUT)
        except Timeout as error:
            raise CheckpointError(
                f"{folder}: another process is training in this folder; wait until it finishes, or stop it"
            ) from error

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove leftovers of a killed process."""
        if self.resumes_in_place:
            remove_surplus(trainer, resumed_from=trainer.ckpt_path)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the checkpoint that the run has resumed from, which Lightning keeps even if nothing refers to it."""
        if self.resumes_in_place:
            remove_surplus(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the RNG states of the checkpoint, and log the row that was still pending."""
        if self._resumed and trainer.strategy.restore_checkpoint_after_setup and trainer.datamodule is not None:
            restart_data_iterator(trainer)
        states = self._resumed.get("rng", [])
        if trainer.global_rank < len(states):
            set_rng_states(states[trainer.global_rank], pl_module.device)
        for row, step in self._resumed.get("unlogged", []):
            for logger in trainer.loggers:
                logger.log_metrics(row, step)
                logger.save()
        self._resumed_at_epoch_end = bool(self._resumed) and finish_restarted_epoch(trainer)
        self._position = current_position(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the next epoch like any other."""
        if self._resumed_at_epoch_end:
            end_restart(trainer)
            self._resumed_at_epoch_end = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end of the previous step is the start of this epoch."""
        self._position = current_position(trainer)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Correct Lightning's separate count of logged steps, which is off by one in a resumed run."""
        if self._resumed:
            set_logged_steps(trainer, trainer.global_step)
            self._resumed = {}

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._position is None or trainer.global_step != self._position.step:
            self._position = current_position(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rng_before_validation = get_rng_states(pl_module.device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the training RNG states, and record that the validation has completed."""
        if self._rng_before_validation is not None:
            set_rng_states(self._rng_before_validation, pl_module.device)
        if not trainer.sanity_checking:
            self._validated = loop_position(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint describe the end of the last optimizer step. A collective: all ranks must call it."""
        now = current_position(trainer)
        position = self._position
        # A new epoch has begun only if the last step ended the previous one: `max_steps` and early stopping end an
        # epoch in its middle, and Lightning counts it as completed.
        if position is None or now.step != position.step or (not now.loops.in_epoch and position.loops.is_last_batch):
            position = now
        data = trainer.datamodule
        if isinstance(data, FunctionCallingDataModule):
            checkpoint[data.__class__.__qualname__] = data.state_dict(position.data)
        is_at_position = position.loops.total_batches == now.loops.total_batches
        validated = position.loops == self._validated
        rewind(checkpoint["loops"]["fit_loop"], position.step, position.loops, validated)
        states = [position.rng]
        if trainer.world_size > 1:
            states = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(states, position.rng)
        checkpoint[_KEY] = {
            "rng": states,
            "ranks": trainer.world_size,
            "accumulated": trainer.accumulate_grad_batches,
            "unlogged": pending_metrics(trainer, position.step),
            "rows": num_metric_rows(trainer, before_step=None if is_at_position else position.step),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the size of the optimizer steps with a different number of ranks.

        Raises:
            CheckpointError: If no accumulation gives steps of the same size.
        """
        if trainer.state.fn != "fit" or _KEY not in checkpoint:
            return
        # Lightning drops the checkpoint before training starts, and `on_save_checkpoint` may change it.
        self._resumed = copy.deepcopy(checkpoint[_KEY])
        saved_ranks, ranks = self._resumed["ranks"], trainer.world_size
        step_batches = saved_ranks * self._resumed["accumulated"]
        accumulate = step_batches // ranks
        step = checkpoint["global_step"]
        done = f"{step} steps ran on {saved_ranks} ranks with {self._resumed['accumulated']} micro-batches each"
        changed = accumulate != trainer.accumulate_grad_batches and (saved_ranks == ranks or trainer.optimizers)
        if step_batches % ranks or changed:
            advice = f"use a number of ranks that divides {step_batches}"
            if step_batches % ranks == 0:
                advice = f"set `--trainer.accumulate_grad_batches {accumulate}`"
            raise CheckpointError(
                f"{done}, but a resumed run must keep the same number of micro-batches per step: {advice}"
            )
        if self.resumes_in_place and trainer.is_global_zero and isinstance(trainer.logger, CSVLogger):
            truncate_metrics(Path(trainer.logger.log_dir) / METRICS_FILE, self._resumed["rows"])
        if saved_ranks != ranks:
            trainer.accumulate_grad_batches = accumulate
            rank_zero_info(f"{done}; the run continues with {ranks} ranks and {accumulate} each, from the same row")
            rescale_batches(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"], saved_ranks, ranks)


def make_resumable(trainer: Trainer) -> None:
    """Make a trainer write atomic checkpoints from which a run resumes exactly."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    if not any(isinstance(callback, Resumable) for callback in trainer.callbacks):
        trainer.callbacks.insert(0, Resumable())  # before those that save


def checkpoint_to_resume_from(trainer: Trainer, ckpt_path: str | None) -> str | None:
    """The checkpoint file to resume from, or None to start from the beginning.

    ``last`` is the newest intact checkpoint of the newest run of this configuration, and the run continues in that
    run's folder; if there is none yet, training starts from the beginning. In a job that SLURM has requeued, it is the
    newest checkpoint of the run that the job began, even if no checkpoint is asked for.

    Raises:
        CheckpointError: If a file is named and it is damaged or missing.
    """
    started = slurm.recorded_run(trainer) if slurm.requeues(trainer) else None
    if started is not None and last_checkpoint([started]):
        return _resume_in_place(trainer, [started])
    if ckpt_path is None or ckpt_path in ("best", "hpc") or ":" in ckpt_path:
        return ckpt_path
    if ckpt_path != "last":
        read_checkpoint(Path(ckpt_path), "meta")
        return ckpt_path
    return _resume_in_place(trainer, checkpoint_folders(trainer))


def _resume_in_place(trainer: Trainer, folders: list[Path]) -> str | None:
    """Find the newest checkpoint and make the trainer write to the folder of its run."""
    root = search_root(trainer)
    checkpoint = last_checkpoint(folders)
    if checkpoint is None:
        rank_zero_info(f"no checkpoint in {root} yet: the run starts from the beginning")
        return None
    rank_zero_info(f"resuming from {checkpoint}")
    for logger in trainer.loggers:
        if hasattr(logger, "root_dir") and fixed_version(logger) is None and checkpoint.is_relative_to(root):
            name = checkpoint.relative_to(root).parts[0]
            number = name.removeprefix("version_")
            set_version(logger, int(number) if number.isdigit() else name)
    # Lightning warns that the folder's files will be deleted, but they are kept.
    warnings.filterwarnings("ignore", r".*exists and is not empty.*")
    for callback in trainer.callbacks:
        if isinstance(callback, Resumable):
            callback.resume_in_place(trainer.logger, trainer.is_global_zero)
    return str(checkpoint)
