"""EvaluationReport: the run's evaluation as an HTML page and as Markdown."""

from __future__ import annotations

from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from fc_lightning.evaluation.evaluator import is_baseline_validation
from fc_lightning.evaluation.metrics import EvaluatedTurn
from fc_lightning.evaluation.report import EvaluatedRun, read_curves, write_report


class EvaluationReport(Callback):
    """Writes ``report.html`` and ``report.md`` to the run's folder when it ends.

    They show results by category and under perturbations, failures with examples, and training curves. If Lightning
    validates before training (``trainer.num_sanity_val_steps: -1``), they compare the model with the untouched base.

    Args:
        filename: Name of the files in the run's folder, without a suffix.
    """

    def __init__(self, filename: str = "report"):
        self.filename = filename
        self.before: list[EvaluatedTurn] = []
        self.last: list[EvaluatedTurn] = []
        self.perturbed: list[EvaluatedTurn] = []

    def on_tool_calls_evaluated(
        self, trainer: Trainer, pl_module: LightningModule, evaluated: list[EvaluatedTurn]
    ) -> None:
        """Keep the evaluation before training and the last one."""
        if is_baseline_validation(trainer):
            self.before = evaluated
        elif not trainer.sanity_checking:
            self.last = evaluated

    def on_perturbed_calls_evaluated(
        self, trainer: Trainer, pl_module: LightningModule, evaluated: list[EvaluatedTurn]
    ) -> None:
        """Keep the perturbed turns."""
        self.perturbed = evaluated

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report."""
        self._write(trainer, "after training")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report, unless this validation is part of training."""
        if trainer.state.fn == "validate":
            self._write(trainer, "validation")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report."""
        self._write(trainer, "test")

    def _write(self, trainer: Trainer, name: str) -> None:
        folder = trainer.log_dir  # a collective
        if not trainer.is_global_zero or not self.last:
            return
        for logger in trainer.loggers:
            logger.save()
        path = Path(folder or ".") / self.filename
        columns = [EvaluatedRun("before training", self.before)] if self.before else []
        curves = read_curves(path.with_name("metrics.csv"))
        run = EvaluatedRun(name, self.last, curves, self.perturbed)
        write_report([*columns, run], path, f"Evaluation: {path.parent}")
