"""EvaluationReport: the run's evaluation as an HTML page and as Markdown."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.evaluation.evaluator import is_baseline_validation
from fc_lightning.evaluation.metrics import EvaluatedTurn
from fc_lightning.evaluation.report import BEFORE_TRAINING, EvaluatedRun, read_curves, write_report
from fc_lightning.evaluation.report_about import about_environment, write_about
from fc_lightning.models.flops import parameter_counts
from fc_lightning.training.run_folders import check_name
from fc_lightning.utils.environment import describe_environment
from fc_lightning.utils.progress import format_duration


class EvaluationReport(Callback):
    """Writes ``report.html`` and ``report.md`` to the run's folder when it ends.

    They say what was evaluated, show the results by category and under perturbations, the evaluated turns next to the
    reference calls, and training curves. If Lightning validates before training (``trainer.num_sanity_val_steps: -1``),
    they compare it with the base model.

    Args:
        filename: Name of the files in the run's folder, without a suffix.
    """

    def __init__(self, filename: str = "report"):
        self.filename = check_name(filename, "filename")
        self.before: list[EvaluatedTurn] = []
        self.last: list[EvaluatedTurn] = []
        self.perturbed: list[EvaluatedTurn] = []
        self._started = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock."""
        self._started = time.monotonic()

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
        self._write(trainer, pl_module, "after training")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report, unless this validation is part of training."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, "validation")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report."""
        self._write(trainer, pl_module, "test")

    def _write(self, trainer: Trainer, module: LightningModule, name: str) -> None:
        folder = Path(trainer.log_dir or ".")  # a collective
        if not trainer.is_global_zero or not self.last or trainer.fast_dev_run:
            return
        for logger in trainer.loggers:
            logger.save()
        about = {
            **about_model(trainer, module),
            "duration": format_duration(time.monotonic() - self._started),
            **about_environment(describe_environment() | {"ranks": trainer.world_size}),
        }
        write_about(folder, about)
        columns = [EvaluatedRun(BEFORE_TRAINING, self.before)] if self.before else []
        run = EvaluatedRun(name, self.last, read_curves(folder / "metrics.csv"), self.perturbed, about)
        write_report([*columns, run], folder / self.filename, f"Evaluation: {folder}")


def about_model(trainer: Trainer, module: Any) -> dict[str, str]:
    """The model and the data of a run, each in one line."""
    trained, total = parameter_counts(module.model)
    adapter = module.peft and f"{module.peft.peft_type.value} adapter"
    about = {
        "model": f"{module.base}{'@' + module.revision if module.revision else ''}, {total:,} parameters",
        "trained": f"{adapter or 'all weights'}, {trained:,} parameters",
    }
    if trainer.ckpt_path:
        about["checkpoint"] = str(trainer.ckpt_path)
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, FunctionCallingDataModule):
        about["data"] = "; ".join(
            f"{split}: {', '.join(source.path for source in data.sources[split])} ({prepared.report.documents:,} rows)"
            for split, prepared in data.prepared.items()
        )
    return about
