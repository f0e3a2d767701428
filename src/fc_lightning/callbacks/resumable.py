"""Resumable: a run that was interrupted goes on as if it had not been."""

from __future__ import annotations

import copy
import csv
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed
from filelock import FileLock, Timeout
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_info

from fc_lightning.training.checkpoint_io import CheckpointError
from fc_lightning.utils.atomic_files import wrap_os_errors

_KEY = "resumable"
_METRICS = "metrics.csv"
_PATIENCE = 20.0  # seconds; the data workers of a killed process live on for some


@dataclass
class _Place:
    """Where training stood at the end of an optimizer step: the gradients of a step begun since are in no checkpoint.

    Attributes:
        step: Optimizer steps done.
        data: Where this rank stands in the data.
        loops: Epochs done, whether one has begun, micro-batches of it and of all, whether they were its last ones.
        rng: The states of this rank's random generators.
    """

    step: int
    data: dict[str, Any]
    loops: tuple[int, bool, int, int, bool]
    rng: dict[str, Any]


class Resumable(Callback):
    """Makes each checkpoint one of the end of an optimizer step, and goes on from there bit by bit.

    A checkpoint that is written within a step (by a validation between two accumulated micro-batches, say) stands for
    the end of the step before, with the data and the random numbers of that moment. A validation that was due and had
    not ended is run when the run goes on. Validation does not touch the random numbers of training. On another number
    of ranks, as many micro-batches are accumulated as make the same steps.

    The command line adds it to every ``fit``.
    """

    def __init__(self) -> None:
        self._place: _Place | None = None
        self._resumed: dict[str, Any] = {}
        self._validated: tuple | None = None
        self._before_validation: dict[str, Any] | None = None
        self._lock: FileLock | None = None
        self.goes_on = False  # in the folder of the run that is resumed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See to it that no other process writes into the run's folder."""
        folder = getattr(trainer.logger, "log_dir", None)
        if stage == "fit" and folder is not None and trainer.is_global_zero:
            self.claim(Path(folder))

    def go_on_in(self, logger: Logger | None, first: bool) -> None:
        """Keep what is in the run's folder; called before Lightning opens the logger, with whether this rank does."""
        self.goes_on = True
        if first and isinstance(logger, CSVLogger):
            self.claim(Path(logger.log_dir))
            reopen_metrics(logger)

    def claim(self, folder: Path) -> None:
        """Take a run's folder, until the process ends.

        Raises:
            CheckpointError: If another process has it.
        """
        if self._lock is not None:
            return
        self._lock = FileLock(folder / ".lock")
        try:
            with wrap_os_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                self._lock.acquire(timeout=_PATIENCE)
        except Timeout as error:
            raise CheckpointError(
                f"{folder}: another process is training there; wait for its end, or stop it"
            ) from error

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let others write there."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let others write there."""
        self.teardown(trainer, pl_module, "fit")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the random numbers of the checkpoint."""
        states = self._resumed.get("rng", [])
        if trainer.global_rank < len(states):
            _set_rng(states[trainer.global_rank], pl_module.device)
        for row, step in self._resumed.get("unlogged", []):
            for logger in trainer.loggers:
                logger.log_metrics(row, step)
                logger.save()
        self._place = self._now(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end of the step before is this epoch's beginning."""
        self._place = self._now(trainer)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Lightning counts the logged steps apart from those done, and is off by one where it has resumed."""
        if self._resumed:
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
            self._resumed = {}

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Remember where a step has ended."""
        if self._place is None or trainer.global_step != self._place.step:
            self._place = self._now(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the random numbers of training aside."""
        self._before_validation = _get_rng(pl_module.device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take them up again, and remember that the validation is done."""
        if self._before_validation is not None:
            _set_rng(self._before_validation, pl_module.device)
        if not trainer.sanity_checking:
            self._validated = _loops(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Have the checkpoint say where the last step ended; a collective."""
        now = self._now(trainer)
        begun = now.loops[1] and self._place is not None and now.step == self._place.step
        place = self._place if begun and self._place is not None else now
        data = trainer.datamodule
        if data is not None:
            checkpoint[data.__class__.__qualname__] = data.state_dict(place.data)
        rewind(checkpoint["loops"]["fit_loop"], place.step, place.loops, place.loops == self._validated)
        states = [place.rng]
        if trainer.world_size > 1:
            states = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(states, place.rng)
        checkpoint[_KEY] = {
            "rng": states,
            "ranks": trainer.world_size,
            "accumulated": trainer.accumulate_grad_batches,
            "unlogged": _unlogged(trainer, place.step),
            "rows": _logged_rows(trainer, None if place.loops == now.loops else place.step),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the size of the steps on another number of ranks."""
        if trainer.state.fn != "fit" or _KEY not in checkpoint:
            return
        # Lightning forgets the checkpoint before training starts, and `on_save_checkpoint` may change it.
        self._resumed = copy.deepcopy(checkpoint[_KEY])
        then, now = self._resumed["ranks"], trainer.world_size
        size = then * self._resumed["accumulated"]
        loops = checkpoint["loops"]["fit_loop"]
        accumulate = size // now
        step = checkpoint["global_step"]
        described = f"{step} steps were done by {then} ranks with {self._resumed['accumulated']} micro-batches each"
        if size % now or (accumulate != trainer.accumulate_grad_batches and (then == now or trainer.optimizers)):
            advice = (
                f"set `--trainer.accumulate_grad_batches {accumulate}`"
                if size % now == 0
                else f"use a number of ranks that divides {size}"
            )
            raise CheckpointError(f"{described}, and the step must stay the same: {advice}")
        if self.goes_on and trainer.is_global_zero and isinstance(trainer.logger, CSVLogger):
            keep_rows(Path(trainer.logger.log_dir) / _METRICS, self._resumed["rows"])
        if then != now:
            trainer.accumulate_grad_batches = accumulate
            rank_zero_info(f"{described}; they go on with {now} ranks and {accumulate} each, behind the same rows")
            _spread(loops["epoch_loop.batch_progress"], then, now)

    def _now(self, trainer: Trainer) -> _Place:
        data = trainer.datamodule.position() if trainer.datamodule is not None else {}
        return _Place(trainer.global_step, data, _loops(trainer), _get_rng(trainer.lightning_module.device))


def rewind(fit_loop: dict[str, Any], step: int, loops: tuple[int, bool, int, int, bool], validated: bool) -> None:
    """Write into the state of Lightning's loops that training stands at the end of a step.

    Lightning tells what to do next from how far its counters are apart: equal ones in the epoch loop say that all is
    done with this batch, a validation included; a validation that has begun but not ended is run from its beginning.

    Args:
        fit_loop: The state, changed in place.
        step: Optimizer steps done.
        loops: See :class:`_Place`.
        validated: Whether the validation that is due there, if any, has been run.
    """
    epochs, begun, batches, total, last = loops
    for counts in fit_loop["epoch_progress"].values():
        counts |= {"ready": epochs + begun, "started": epochs + begun, "processed": epochs, "completed": epochs}
    progress = fit_loop["epoch_loop.batch_progress"]
    for name, count in (("current", batches if begun else 0), ("total", total)):
        progress[name] |= dict.fromkeys(("ready", "started", "processed", "completed"), count)
    progress["is_last_batch"] = begun and last
    validation = fit_loop["epoch_loop.val_loop.batch_progress"]
    for counts in (validation["current"], validation["total"]):
        counts |= dict.fromkeys(("ready", "started", "processed", "completed"), 0)
    if begun and not validated:
        validation["total"] |= {"ready": 1, "started": 1}
    validation["is_last_batch"] = False
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step - 1 if begun else step


def _loops(trainer: Trainer) -> tuple[int, bool, int, int, bool]:
    epoch = trainer.fit_loop.epoch_progress.current
    progress = trainer.fit_loop.epoch_loop.batch_progress
    begun = epoch.started > epoch.processed
    return epoch.processed, begun, progress.current.ready, progress.total.ready, progress.is_last_batch


def _spread(progress: dict[str, Any], then: int, now: int) -> None:
    """The same micro-batches, counted on another number of ranks."""
    for counts in (progress["current"], progress["total"]):
        counts.update({name: -(-count * then // now) for name, count in counts.items()})


def _unlogged(trainer: Trainer, step: int) -> list[tuple[dict[str, float], int]]:
    """The row of metrics that Lightning writes once the callbacks at the end of a batch have been called."""
    batch = trainer.fit_loop.epoch_loop.batch_progress.current
    connector = trainer._logger_connector
    within = trainer.training and batch.processed == batch.completed + 1 and trainer.global_step == step
    if not within or trainer.fit_loop._should_accumulate() or not connector.should_update_logs:
        return []
    row = {name: float(value) for name, value in connector.metrics["log"].items()}
    return [({**row, "epoch": trainer.current_epoch}, step - 1)]


def _logged_rows(trainer: Trainer, step: int | None) -> int:
    """Rows of metrics that are on disk; of a step that is begun anew, without those logged in it."""
    if not trainer.is_global_zero or not isinstance(trainer.logger, CSVLogger):
        return 0
    trainer.logger.save()
    file = Path(trainer.logger.log_dir) / _METRICS
    if not file.exists():
        return 0
    with file.open(encoding="utf-8") as lines:
        steps = [int(row["step"]) for row in csv.DictReader(lines)]
    while step is not None and steps and steps[-1] >= step:
        steps.pop()
    return len(steps)


def reopen_metrics(logger: CSVLogger) -> None:
    """Have a logger append to a run's metrics, which it would delete."""
    file = Path(logger.log_dir) / _METRICS
    aside = file.with_name(f"{_METRICS}.kept")
    if file.exists():
        file.replace(aside)
    experiment = logger.experiment
    if aside.exists():
        with aside.open(encoding="utf-8") as lines:
            experiment.metrics_keys = next(csv.reader(lines), [])
        aside.replace(file)


def keep_rows(file: Path, count: int) -> None:
    """Take away the metrics that were logged since a checkpoint: the run that goes on from it logs them again."""
    if file.exists():
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        partial = file.with_name(f"{_METRICS}.partial")
        partial.write_text("".join(lines[: count + 1]), encoding="utf-8")
        partial.replace(file)


def _get_rng(device: torch.device) -> dict[str, Any]:
    """The random generators' states, in plain types."""
    numbers: Any = numpy.random.get_state()
    name, keys, *rest = numbers
    states: dict[str, Any] = {"python": random.getstate()}
    states["numpy"] = [name, torch.from_numpy(keys.astype("int64")), *rest]
    states["torch"] = torch.get_rng_state()
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_rng(states: dict[str, Any], device: torch.device) -> None:
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    numpy.random.set_state((name, keys.numpy().astype("uint32"), *rest))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
