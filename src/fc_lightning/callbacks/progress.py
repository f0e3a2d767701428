"""ProgressBar: a bar in a terminal, lines in a log file, with the numbers that were logged anyway."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from fc_lightning.training.lightning_internals import update_bar_metrics

_SHOWN = {
    "train/loss": ("loss", ".3f"),
    "train/tokens_per_second": ("tokens/s", ",.0f"),
    "val/loss": ("val loss", ".3f"),
    "val/exact_match": ("exact match", ".3f"),
}


class ProgressBar(RichProgressBar):
    """Shows the last logged loss, speed and exact match; ``prog_bar=True`` would synchronize the device every batch.

    In a terminal it is Lightning's rich progress bar. If the output goes to a file, it prints a line now and then.

    Args:
        seconds: Seconds between two lines in a file.
        refresh_rate: Refreshes per second of the bar in a terminal.
    """

    def __init__(self, seconds: float = 30.0, refresh_rate: int = 4):
        super().__init__(refresh_rate=refresh_rate, leave=True)
        self.seconds = seconds
        self.to_file = not sys.stdout.isatty()
        self._values: dict[str, str] = {}
        self._values_step = 0  # the step of these values
        self._started = 0.0
        self._last_line = 0.0

    @property
    def is_enabled(self) -> bool:
        """Whether to show a bar."""
        return super().is_enabled and not self.to_file

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The values next to the bar, read once per logged step, when Lightning synchronizes the device anyway."""
        if trainer.global_step != self._values_step and trainer.global_step % trainer.log_every_n_steps == 0:
            self._read_values(trainer)
        return dict(self._values)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._started = self._last_line = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar, or print a line if it is time for one."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.get_metrics(trainer, pl_module)  # a line may be printed between two logged steps
        if self._prints_lines and time.monotonic() - self._last_line >= self.seconds:
            self._print_line(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the results of the validation."""
        super().on_validation_end(trainer, pl_module)
        self._read_values(trainer)
        update_bar_metrics(self, trainer, pl_module)
        if self._prints_lines and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._print_line(trainer, pl_module)

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
