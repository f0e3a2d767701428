"""SampleTable: a few correct and incorrect calls, in the terminal and in the logger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fc_lightning.evaluation.error_types import compare_calls, error_type
from fc_lightning.evaluation.metrics import EvaluatedTurn
from fc_lightning.utils.escaping import printable_text
from fc_lightning.utils.html import markdown_table

_HEADER = ("id", "turn", "what", "expected", "predicted")


class SampleTable(Callback):
    """Prints and logs a table of incorrect and correct turns after each evaluation, with differences in red.

    TensorBoard gets it as text, Weights & Biases and Trackio as a table, and MLflow as the artifact ``samples.json``
    with the rows of all evaluations. Other loggers get nothing.

    Args:
        wrong: Number of incorrect turns to show.
        right: Number of correct turns to show.
    """

    def __init__(self, wrong: int = 4, right: int = 2):
        self.wrong = wrong
        self.right = right

    def on_tool_calls_evaluated(
        self, trainer: Trainer, pl_module: LightningModule, evaluated: list[EvaluatedTurn]
    ) -> None:
        if not trainer.is_global_zero or not evaluated:
            return
        chosen = self._choose(evaluated)
        Console().print(_table(chosen, f"samples, step {trainer.global_step}"))
        rows = [[str(cell) for cell in _row(turn)] for turn in chosen]
        for logger in trainer.loggers:
            if hasattr(logger, "log_table"):
                logger.log_table("samples", columns=list(_HEADER), data=rows, step=trainer.global_step)
            elif isinstance(logger, MLFlowLogger):
                table = {"step": [trainer.global_step] * len(rows)}
                table |= {name: [row[place] for row in rows] for place, name in enumerate(_HEADER)}
                logger.experiment.log_table(logger.run_id, table, "samples.json")
            elif hasattr(logger.experiment, "add_text"):
                logger.experiment.add_text("samples", markdown_table(_HEADER, rows), trainer.global_step)

    def _choose(self, evaluated: Sequence[EvaluatedTurn]) -> list[EvaluatedTurn]:
        wrong = [turn for turn in evaluated if not turn.exact_match]
        right = [turn for turn in evaluated if turn.exact_match]
        return [*wrong[: self.wrong], *right[: self.right]]


def _row(turn: EvaluatedTurn) -> list[Any]:
    sides = (turn.expected, turn.predicted), (turn.predicted, turn.expected)
    calls = [
        Text.assemble(*((printable_text(text), "red" if differs else "") for text, differs in compare_calls(*side)))
        for side in sides
    ]
    return [turn.id, str(turn.turn), error_type(turn) or "correct", *calls]


def _table(turns: Sequence[EvaluatedTurn], title: str) -> Table:
    table = Table(*_HEADER, title=title, show_lines=True)
    for turn in turns:
        row = _row(turn)
        table.add_row(*(cell if isinstance(cell, Text) else Text(printable_text(cell)) for cell in row))
    return table
