"""PredictionWriter: every evaluated turn, one per line."""

from __future__ import annotations

import json
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from fc_lightning.evaluation.evaluator import is_baseline_validation
from fc_lightning.evaluation.metrics import EvaluatedTurn
from fc_lightning.training.run_folders import check_name
from fc_lightning.utils.atomic_files import DiskError, write_text

# Prompts without a reference answer have no verdict.
_UNLABELLED = dict.fromkeys(("expected", "exact_match", "name_match"))


class PredictionWriter(Callback):
    """Writes ``predictions.jsonl`` to the run's folder in test and predict, and after each validation.

    The predictions of the base model go to ``predictions_before.jsonl``, if Lightning validates before training
    (``trainer.num_sanity_val_steps: -1``), those of perturbed prompts (``data.perturbations``) to
    ``predictions_perturbed.jsonl``.

    Args:
        filename: Name of the file in the run's folder.
    """

    def __init__(self, filename: str = "predictions.jsonl"):
        self.filename = check_name(filename, "filename")

    def on_tool_calls_evaluated(
        self, trainer: Trainer, pl_module: LightningModule, evaluated: list[EvaluatedTurn]
    ) -> None:
        folder = trainer.log_dir  # a collective
        if not trainer.is_global_zero or (trainer.sanity_checking and not is_baseline_validation(trainer)):
            return
        path = Path(folder or ".") / self.filename
        self._write(trainer, path.with_stem(f"{path.stem}_before") if trainer.sanity_checking else path, evaluated)

    def on_perturbed_calls_evaluated(
        self, trainer: Trainer, pl_module: LightningModule, evaluated: list[EvaluatedTurn]
    ) -> None:
        path = Path(trainer.log_dir or ".") / self.filename  # a collective
        if trainer.is_global_zero:
            self._write(trainer, path.with_stem(f"{path.stem}_perturbed"), evaluated)

    def _write(self, trainer: Trainer, path: Path, evaluated: list[EvaluatedTurn]) -> None:
        if trainer.fast_dev_run:
            return  # it has no folder
        turns = [{**turn.to_dict(), **({} if turn.labelled else _UNLABELLED)} for turn in evaluated]
        lines = [json.dumps(turn, ensure_ascii=False) for turn in turns]
        try:
            write_text(path, "".join(f"{line}\n" for line in lines))
        except DiskError as error:
            if trainer.state.fn != "fit":
                raise
            rank_zero_warn(f"{error}; training continues")
