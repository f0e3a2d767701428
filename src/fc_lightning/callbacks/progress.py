"""ProgressBar: a bar in a terminal or lines in a log file, with values that are logged anyway."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import BarColumn

from fc_lightning.data.dataloaders import is_prompt_batch
from fc_lightning.evaluation.generation import ignore_step
from fc_lightning.training.lightning_internals import stop_bar, update_bar_metrics
from fc_lightning.utils.progress import INTERVAL, Counter

_SHOWN = {
    "train/loss": ("loss", ".3f"),
    "train/tokens_per_second": ("tokens/s", ",.0f"),
    "val/loss": ("val loss", ".3f"),
    "val/exact_match": ("exact match", ".3f"),
}
_SHOWN_NARROW = ("loss",)  # more would wrap the bar of a narrow terminal onto several lines
_WIDE = 120  # columns
_NARROW_BAR = 6


class ProgressBar(RichProgressBar):
    """Shows the last logged loss, speed and exact match; ``prog_bar=True`` would synchronize the device every batch.

    In a terminal it is Lightning's rich progress bar. If the output goes to a file, it prints a line at intervals.
    While the model generates, both show the number of turns and the exact match so far, on the first rank.

    Args:
        seconds: Seconds between lines in a file.
        refresh_rate: Refreshes per second of the bar in a terminal.
    """

    def __init__(self, seconds: float = INTERVAL, refresh_rate: int = 4):
        super().__init__(refresh_rate=refresh_rate, leave=True)
        self.seconds = seconds
        self.to_file = not sys.stdout.isatty()
        self._values: dict[str, str] = {}
        self._values_step = 0  # the step of these values
        self._started = 0.0
        self._last_line = 0.0
        # The evaluation under way
        self._evaluation = Counter("", None, "")
        self._num_before = 0  # what was done before the current batch
        self._task: Any = None  # of the bar

    @property
    def is_enabled(self) -> bool:
        """Whether to show a bar."""
        return super().is_enabled and not self.to_file

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The values next to the bar, read once per logged step, when Lightning synchronizes the device anyway."""
        if trainer.global_step != self._values_step and trainer.global_step % trainer.log_every_n_steps == 0:
            self._read_values(trainer)
        if self.to_file or _is_wide():
            return dict(self._values)
        return {name: value for name, value in self._values.items() if name in _SHOWN_NARROW}

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Columns that fit on one line: a short bar and no speed in a narrow terminal."""
        columns = super().configure_columns(trainer)
        if _is_wide():
            return columns
        next(column for column in columns if isinstance(column, BarColumn)).bar_width = _NARROW_BAR
        return columns[:-1]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._started = self._last_line = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Advance the bar, or print a line if it is time for one."""
        super().on_train_batch_end(trainer, pl_module, *args)
        self.get_metrics(trainer, pl_module)  # a line may be printed between two logged steps
        if self._prints_lines and time.monotonic() - self._last_line >= self.seconds:
            self._print_line(trainer, pl_module)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Begin to count with the first batch."""
        super().on_validation_batch_start(trainer, pl_module, *args)
        if trainer.sanity_checking:
            title, limits, task = "base model", trainer.num_sanity_val_batches, self.val_sanity_progress_bar_id
        else:
            title, limits, task = "validation", trainer.num_val_batches, self.val_progress_bar_id
        self._begin_batch(title, pl_module, trainer.val_dataloaders, limits, task, *args)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Advance the bar, or print a line if it is time for one."""
        super().on_validation_batch_end(trainer, pl_module, *args)
        self._end_batch(pl_module, *args)

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Begin to count with the first batch."""
        super().on_test_batch_start(trainer, pl_module, *args)
        loaders, limits = trainer.test_dataloaders, trainer.num_test_batches
        self._begin_batch("test", pl_module, loaders, limits, self.test_progress_bar_id, *args)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Advance the bar, or print a line if it is time for one."""
        super().on_test_batch_end(trainer, pl_module, *args)
        self._end_batch(pl_module, *args)

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Begin to count with the first batch."""
        super().on_predict_batch_start(trainer, pl_module, *args)
        loaders, limits = trainer.predict_dataloaders, trainer.num_predict_batches
        self._begin_batch("prediction", pl_module, loaders, limits, self.predict_progress_bar_id, *args)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Advance the bar, or print a line if it is time for one."""
        super().on_predict_batch_end(trainer, pl_module, *args)
        self._end_batch(pl_module, *args)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the results of the validation."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "validate":
            stop_bar(self)
            return
        self._read_values(trainer)
        update_bar_metrics(self, trainer, pl_module)
        if self._prints_lines and not trainer.sanity_checking:
            self._print_line(trainer, pl_module)

    def on_test_end(self, *args: Any) -> None:
        """End the bar before other callbacks print results: its last redraw would overwrite them."""
        super().on_test_end(*args)
        stop_bar(self)

    def on_predict_end(self, *args: Any) -> None:
        """End the bar before other callbacks print results."""
        super().on_predict_end(*args)
        stop_bar(self)

    def on_train_end(self, *args: Any) -> None:
        """End the bar before other callbacks print results."""
        super().on_train_end(*args)
        stop_bar(self)

    def _begin_batch(
        self,
        title: str,
        module: Any,
        loaders: Any,
        limits: Sequence[float],
        task: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count turns where the model generates, as they end, otherwise batches."""
        if batch_idx == 0:
            limit = limits[dataloader_idx]
            batches = None if math.isinf(limit) else int(limit)
            loader = loaders[dataloader_idx] if isinstance(loaders, list | tuple) else loaders
            total = sum(map(len, islice(loader.sampler, batches))) if is_prompt_batch(batch) else batches
            self._evaluation = Counter(title, total, "turns" if is_prompt_batch(batch) else "batches")
        self._task = task
        self._num_before = self._evaluation.done
        if is_prompt_batch(batch) and module.turn_generator.samples == 1:
            module.turn_generator.on_step = self._advance

    def _end_batch(self, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        if not is_prompt_batch(batch):
            self._advance(1)
            return
        module.turn_generator.on_step = ignore_step
        self._advance(self._num_before + len(batch["order"]) - self._evaluation.done, _exact_match(module))

    def _advance(self, number: int, note: str = "") -> None:
        self._evaluation.advance(number, note)
        if self._prints_lines:
            self._evaluation.print_if_due(self.seconds)
        elif self.progress is not None and self._task is not None:
            self.progress.update(self._task, description=self._evaluation.describe(with_time_left=False))

    @property
    def _prints_lines(self) -> bool:
        return self.to_file and super().is_enabled  # on one rank only

    def _read_values(self, trainer: Trainer) -> None:
        known, self._values_step = trainer.callback_metrics, trainer.global_step
        self._values = {
            short: f"{known[name].item():{form}}" for name, (short, form) in _SHOWN.items() if name in known
        }

    def _print_line(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_line = time.monotonic()
        done, total = trainer.global_step, trainer.estimated_stepping_batches
        share = f"/{total:,.0f} ({done / total:.0%})" if total != float("inf") else ""
        clock = time.strftime("%H:%M:%S", time.gmtime(self._last_line - self._started))
        values = "  ".join(f"{name} {value}" for name, value in self.get_metrics(trainer, pl_module).items())
        print(f"{clock}  step {done:,}{share}  epoch {trainer.current_epoch}  {values}".rstrip(), flush=True)


def _is_wide() -> bool:
    return shutil.get_terminal_size().columns >= _WIDE


def _exact_match(module: Any) -> str:
    """Exact match of the turns that this rank has evaluated so far, if they have reference answers."""
    turns = [turn for _, turn in getattr(module, "evaluated_turns", ()) if turn.labelled]
    return f"exact match {sum(turn.exact_match for turn in turns) / len(turns):.2f}" if turns else ""
