"""ProgressBar: a bar in a terminal, lines in a log file, with the numbers that were logged anyway."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

_SHOWN = {
    "train/loss": ("loss", ".3f"),
    "train/tokens_per_second": ("tokens/s", ",.0f"),
    "val/loss": ("val loss", ".3f"),
    "val/exact_match": ("exact match", ".3f"),
}


class ProgressBar(RichProgressBar):
    """Shows loss, speed and exact match as they were logged last; ``prog_bar=True`` would ask the device each batch.

    In a terminal it is Lightning's bar by rich. Where the output goes elsewhere, a log file say, it prints a line every
    so often, so that the file stays readable.

    Args:
        seconds: Between two lines of a log file.
        refresh_rate: Of the bar in a terminal, in refreshes a second.
    """

    def __init__(self, seconds: float = 30.0, refresh_rate: int = 4):
        super().__init__(refresh_rate=refresh_rate, leave=True)
        self.seconds = seconds
        self.lines = not sys.stdout.isatty()
        self._values: dict[str, str] = {}
        self._read_at = 0  # the step whose values are shown
        self._started = self._last_line = 0.0

    @property
    def is_enabled(self) -> bool:
        """Whether there is a bar."""
        return super().is_enabled and not self.lines

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands behind the bar: read once after each step that was logged, when Lightning asks the device too."""
        if trainer.global_step != self._read_at and trainer.global_step % trainer.log_every_n_steps == 0:
            self._read(trainer)
        return dict(self._values)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._started = self._last_line = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar, or print a line if it is time for one."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.get_metrics(trainer, pl_module)  # a line may come between two steps that were logged
        if self._prints and time.monotonic() - self._last_line >= self.seconds:
            self._print(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what the validation has found."""
        super().on_validation_end(trainer, pl_module)
        self._read(trainer)
        self._update_metrics(trainer, pl_module)
        if self._prints and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._print(trainer, pl_module)

    @property
    def _prints(self) -> bool:
        return self.lines and self._enabled  # one rank does

    def _read(self, trainer: Trainer) -> None:
        known, self._read_at = trainer.callback_metrics, trainer.global_step
        self._values = {
            short: f"{known[name].item():{form}}" for name, (short, form) in _SHOWN.items() if name in known
        }

    def _print(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_line = time.monotonic()
        done, total = trainer.global_step, trainer.estimated_stepping_batches
        share = f"/{total:,.0f} ({done / total:.0%})" if total != float("inf") else ""
        clock = time.strftime("%H:%M:%S", time.gmtime(self._last_line - self._started))
        values = "  ".join(f"{name} {value}" for name, value in self.get_metrics(trainer, pl_module).items())
        print(f"{clock}  step {done:,}{share}  epoch {trainer.current_epoch}  {values}".rstrip(), flush=True)
