"""Preemption: a signal stops all ranks at the same step, with a checkpoint to go on from."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch.distributed.distributed_c10d import _get_default_store

from fc_lightning.training import slurm
from fc_lightning.training.distributed import STOPPED
from fc_lightning.training.run_folders import checkpoint_folder

_REQUEUE = "requeue"
_REASONS = (_REQUEUE, *STOPPED)  # to stop; the first counts
_KEY = "fc_lightning/stop"


class Signals(_SignalConnector):
    """Lightning's signal handlers, but for what they do: they take note, and nothing else.

    Lightning's own exchange tensors and write checkpoints within the handler, while another rank may be waiting for
    this one in the middle of a step: that can hang. What was noted is done by :class:`Preemption`.
    """

    def __init__(self, trainer: Trainer):
        super().__init__(trainer)
        self.noted: dict[Any, int] = {}
        self._process = os.getpid()

    def register_signal_handlers(self) -> None:
        """Lightning calls it when its loops begin, and restores what was there before when they end."""
        self.noted.clear()
        super().register_signal_handlers()
        self._register_signal(signal.SIGINT, self._sigterm_notifier_fn)

    def _sigterm_notifier_fn(self, signum: int, frame: FrameType | None) -> None:
        again = signum in self.noted
        self.noted[signum] = signum
        if os.getpid() != self._process:
            # A data worker: one signal for all processes may come before the rank has stopped, a second is from it.
            if again and signum == signal.SIGTERM:
                os._exit(STOPPED[signal.SIGTERM])
        elif again and signum == signal.SIGINT:
            raise KeyboardInterrupt

    def _slurm_sigusr_handler_fn(self, signum: int, frame: FrameType | None) -> None:
        self.noted[_REQUEUE] = signum


class Preemption(Callback):
    """Stops at SIGTERM or SIGINT to any of the ranks: saves ``last.ckpt`` and leaves with 143 or 130.

    The ranks hear of it at the end of the next optimizer step, with the tensor that they exchange in each anyway, or at
    the end of a batch of an evaluation, which is then given up and, when the run goes on, done from its beginning.
    Where SLURM sends its signal (``SLURMEnvironment(auto_requeue=True)``), the job is requeued before they leave, and
    goes on from there when SLURM starts it again. A second SIGINT ends at once, without saving. The command line always
    adds this callback.
    """

    def __init__(self) -> None:
        self._stop: Any = None  # the reason that all ranks have heard of
        self._told = False
        self._evaluating = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over from Lightning."""
        if not isinstance(trainer._signal_connector, Signals):
            trainer._signal_connector = Signals(trainer)
        # It asks the device and all ranks before each micro-batch what is asked here once a step.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A job of SLURM may be started again at any time."""
        if slurm.requeues(trainer):
            folder = checkpoint_folder(trainer)  # asks all ranks
            if trainer.is_global_zero:
                slurm.note(trainer, folder)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Have the module tell the other ranks what this one has noted."""
        noted = trainer._signal_connector.noted
        pl_module.notices = [float(reason in noted) for reason in _REASONS]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop, if that was agreed on in this optimizer step; where an evaluation is due now, at its beginning."""
        self._stop = next((reason for reason, count in zip(_REASONS, pl_module.noticed, strict=False) if count), None)
        pl_module.noticed = ()
        due = trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
        if self._stop is not None and not (due and sum(trainer.num_val_batches)):
            self._leave(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop, if that was agreed on before."""
        self._evaluating = True
        if self._stop is not None:
            self._leave(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Give the evaluation up, if a rank has to stop; each does so at a batch of its own."""
        if self._anyone(trainer):
            raise StopIteration  # what Lightning's loop takes for the end of the data

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All ranks come by here: stop, if one of them has to."""
        self._stop = self._agree(trainer)
        if self._stop is not None:
            self._leave(trainer)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end
    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checkpoints are the training's again."""
        self._evaluating = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Where an evaluation is given up, note it as begun: Lightning then begins with it when the run goes on."""
        if self._evaluating and self._stop is not None:
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress = {"total": begun, "current": dict(begun), "is_last_batch": False}
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = progress

    def _anyone(self, trainer: Trainer) -> bool:
        """Whether this rank or another has to stop; asks no device, and waits for nobody."""
        noted = any(reason in trainer._signal_connector.noted for reason in _REASONS)
        if trainer.world_size == 1:
            return noted
        store = _get_default_store()
        if noted and not self._told:
            store.set(_KEY, "")
            self._told = True
        return noted or store.check([_KEY])

    def _agree(self, trainer: Trainer) -> Any:
        noted = torch.tensor([reason in trainer._signal_connector.noted for reason in _REASONS], dtype=torch.int)
        noted = noted.to(trainer.strategy.root_device)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(noted)
        return next((reason for reason, count in zip(_REASONS, noted.tolist(), strict=True) if count), None)

    def _leave(self, trainer: Trainer) -> NoReturn:
        """Save, if there is anything to save, and leave; all ranks do."""
        requeue, step = self._stop == _REQUEUE, trainer.global_step
        name = "requeue" if requeue else signal.Signals(self._stop).name
        message = f"{name}: stopped"
        if trainer.state.fn == "fit" and step:
            path = last_checkpoint(trainer)
            trainer.save_checkpoint(path)
            message = f"{name}: stopped after {step} optimizer steps; to go on, add --ckpt_path {path}"
            if requeue and trainer.is_global_zero:
                slurm.note(trainer, path.parent, requeued=True)
        if trainer.is_global_zero:
            if requeue:
                failed, job = slurm.requeue(), slurm.job_id()
                message += f"; SLURM did not requeue job {job}: {failed}" if failed else f"; SLURM requeues job {job}"
            print(f"\n{message}", file=sys.stderr, flush=True)
        if requeue:
            trainer.strategy.barrier()  # SLURM may end a job whose other ranks have left, before it is requeued
        sys.exit(STOPPED.get(self._stop, STOPPED[signal.SIGTERM]))


def last_checkpoint(trainer: Trainer) -> Path:
    """Where the run's last checkpoint lies: beside the others, or in the run's folder. All ranks must call it."""
    callback = trainer.checkpoint_callback
    path = checkpoint_folder(trainer) / "last.ckpt"
    if trainer.is_global_zero and path.is_symlink():
        path.unlink()  # `save_last: link` points at another checkpoint, which is to stay as it is
    if callback is not None and hasattr(callback, "last_model_path"):
        callback.last_model_path = str(path)
    return path
