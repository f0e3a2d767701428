"""Preemption: a signal stops all ranks after the same step, with a checkpoint to resume from."""

from __future__ import annotations

import signal
import sys
from typing import Any, NoReturn

import torch
import torch.distributed
from lightning import Callback, LightningModule, Trainer
from torch.distributed.distributed_c10d import _get_default_store

from fc_lightning.training import slurm
from fc_lightning.training.distributed import STOPPED
from fc_lightning.training.lightning_internals import REQUEUE, is_validation_due, received_signals, record_signals
from fc_lightning.training.run_folders import checkpoint_folder, last_checkpoint_path

_REASONS = (REQUEUE, *STOPPED)  # to stop; the first one that any rank has received counts
_STORE_KEY = "fc_lightning/stop"


class Preemption(Callback):
    """On SIGTERM or SIGINT to any rank, saves ``last.ckpt`` and exits with status 143 or 130.

    All ranks learn of the signal at the end of the next optimizer step, through the tensor that they exchange anyway,
    or at the end of an evaluation batch. The evaluation is then cut short, and runs again from its start when the run
    is resumed. If SLURM sends its requeue signal (``SLURMEnvironment(auto_requeue=True)``), the job is requeued before
    the ranks exit, and resumes when SLURM starts it again. A second SIGINT exits immediately, without saving. The
    command line always adds this callback.
    """

    def __init__(self) -> None:
        self._reason: Any = None  # to stop, once all ranks have agreed on it
        self._told_peers = False
        self._is_evaluating = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        record_signals(trainer, worker_exit_code=STOPPED[signal.SIGTERM])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the folder of this run: SLURM may restart its job at any time."""
        if slurm.requeues(trainer):
            folder = checkpoint_folder(trainer)  # a collective
            if trainer.is_global_zero:
                slurm.record_run(trainer, folder)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        received = received_signals(trainer)
        pl_module.rank_flags = [float(reason in received) for reason in _REASONS]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop if any rank has received a signal; if a validation is due now, stop at its start."""
        self._reason = _first_reason(pl_module.peer_flags)
        pl_module.peer_flags = ()
        if self._reason is not None and not (is_validation_due(trainer) and sum(trainer.num_val_batches)):
            self._exit(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_evaluating = True
        if self._reason is not None:
            self._exit(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Cut the evaluation short if any rank has received a signal.

        Ranks may be at different batches, unless they share the weights: then each batch is a collective, and all of
        them must stop at the same one.
        """
        if pl_module.device_mesh is not None:
            stop = self._agree(trainer) is not None
        else:
            stop = self._any_rank_signalled(trainer)
        if stop:
            raise StopIteration  # Lightning's loop takes it for the end of the data

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if any rank has received a signal. All ranks reach this point."""
        self._reason = self._agree(trainer)
        if self._reason is not None:
            self._exit(trainer)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end
    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checkpoints describe training again."""
        self._is_evaluating = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Mark an evaluation that was cut short as begun, so that Lightning starts with it when the run resumes."""
        if self._is_evaluating and self._reason is not None:
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress = {"total": begun, "current": dict(begun), "is_last_batch": False}
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = progress

    def _any_rank_signalled(self, trainer: Trainer) -> bool:
        """Whether any rank has received a signal, without a device synchronization or a collective."""
        received = any(reason in received_signals(trainer) for reason in _REASONS)
        if trainer.world_size == 1:
            return received
        store = _get_default_store()
        if received and not self._told_peers:
            store.set(_STORE_KEY, "")
            self._told_peers = True
        return received or store.check([_STORE_KEY])

    def _agree(self, trainer: Trainer) -> Any:
        """The reason to stop that any rank has received. A collective."""
        received = received_signals(trainer)
        flags = torch.tensor([reason in received for reason in _REASONS], dtype=torch.int)
        flags = flags.to(trainer.strategy.root_device)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(flags)
        return _first_reason(flags.tolist())

    def _exit(self, trainer: Trainer) -> NoReturn:
        """Save a checkpoint, if any step was done, and exit. All ranks must call it."""
        requeue, step = self._reason == REQUEUE, trainer.global_step
        name = "requeue" if requeue else signal.Signals(self._reason).name
        message = f"{name}: stopped"
        if trainer.state.fn == "fit" and step and not trainer.fast_dev_run:
            path = last_checkpoint_path(trainer)
            trainer.save_checkpoint(path)
            message = f"{name}: stopped after {step} optimizer steps; to resume, add --ckpt_path {path}"
            if requeue and trainer.is_global_zero:
                slurm.record_run(trainer, path.parent, requeued=True)
        if trainer.is_global_zero:
            if requeue:
                failure, job = slurm.requeue(), slurm.job_id()
                message += f"; SLURM did not requeue job {job}: {failure}" if failure else f"; SLURM requeues job {job}"
            print(f"\n{message}", file=sys.stderr, flush=True)
        if requeue:
            trainer.strategy.barrier()  # SLURM may end a job whose other ranks have exited before it is requeued
        sys.exit(STOPPED.get(self._reason, STOPPED[signal.SIGTERM]))


def _first_reason(counts: Any) -> Any:
    return next((reason for reason, count in zip(_REASONS, counts, strict=False) if count), None)
