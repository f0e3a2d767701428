"""RunSummary: exact match before and after, and what to do next."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from fc_lightning.metrics import EvaluatedTurn


class RunSummary(Callback):
    """Prints how often the calls were right before training and after it, by category, and where the run is.

    What was right *before* is known where Lightning validates first: ``trainer.num_sanity_val_steps: -1``.
    """

    def __init__(self) -> None:
        self.before: list[EvaluatedTurn] = []
        self.after: list[EvaluatedTurn] = []
        self.started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.started = time.monotonic()

    def on_tool_calls_evaluated(
        self, trainer: Trainer, pl_module: LightningModule, evaluated: list[EvaluatedTurn]
    ) -> None:
        """Keep the first and the last evaluation."""
        if trainer.sanity_checking:
            self.before = evaluated
            if trainer.logger:
                trainer.logger.log_metrics({"val/exact_match": exact_match(evaluated)}, step=0)
        else:
            self.after = evaluated

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the summary."""
        folder = trainer.log_dir  # asks all ranks
        if not trainer.is_global_zero:
            return
        console = Console()
        minutes = f" in {(time.monotonic() - self.started) / 60:.1f} minutes" if self.started else ", finished before"
        console.print(f"\n{trainer.global_step} optimizer steps{minutes}", highlight=False)
        if self.after:
            console.print(_table(self.before, self.after))
        run = Path(folder or ".")
        console.print(f"run:     {run}\nadapter: {run / 'adapter'}", highlight=False, soft_wrap=True)
        best = getattr(trainer.checkpoint_callback, "best_model_path", "") or "best"
        command = f"python main.py export --config {run / 'config.yaml'} --ckpt_path {best} --output exported"
        console.print(f"next:    {command}", highlight=False, soft_wrap=True)


def exact_match(turns: Sequence[EvaluatedTurn]) -> float:
    """Share of turns whose calls are exactly right."""
    return sum(turn.exact_match for turn in turns) / len(turns)


def _table(before: Sequence[EvaluatedTurn], after: Sequence[EvaluatedTurn]) -> Table:
    table = Table("category", "turns", "before", "after", title="exact match")
    for category in [*sorted({turn.category for turn in after if turn.category}), None]:
        columns = [[turn for turn in turns if category in (None, turn.category)] for turns in (before, after)]
        shown = [f"{exact_match(turns):.3f}" if turns else "–" for turns in columns]
        table.add_row("all" if category is None else category, str(len(columns[1])), *shown)
    return table
