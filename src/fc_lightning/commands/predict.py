"""``predict``: generates for the test split, a file of prompts or one question."""

from __future__ import annotations

from pathlib import Path

from lightning import Callback, Trainer
from rich.console import Console

from fc_lightning.commands.chat import as_message, print_message
from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.data.prompts import prompt_rows, read_prompts
from fc_lightning.evaluation.metrics import EvaluatedTurn
from fc_lightning.training.module import FunctionCallingModule


def predict(
    trainer: Trainer,
    model: FunctionCallingModule,
    datamodule: FunctionCallingDataModule,
    prompts: str | None = None,
    question: str | None = None,
    tools: str | None = None,
    ckpt_path: str | None = None,
) -> None:
    """Generate model turns for ``data.test``, a file of prompts, or one question, and write ``predictions.jsonl``.

    The answer to a question is printed too.

    Args:
        trainer: Generates.
        model: The module.
        datamodule: The data.
        prompts: A file of rows with ``messages`` and ``tools``.
        question: A single question.
        tools: A JSON file with the offered tools, for the question and for rows that have none.
        ckpt_path: A checkpoint file, or ``best`` or ``last``; the base model if not given.
    """
    if prompts is not None or question is not None:
        datamodule.prompts = prompt_rows(read_prompts(prompts, question, tools), datamodule.template)
    if question is not None:
        trainer.callbacks.append(PrintAnswer())
    Trainer.predict(trainer, model, datamodule=datamodule, ckpt_path=ckpt_path, return_predictions=False)
    file = Path(trainer.log_dir or ".") / "predictions.jsonl"  # a collective
    if trainer.is_global_zero and file.is_file():
        print(f"predictions: {file}")


class PrintAnswer(Callback):
    """Prints the generated turn."""

    def __init__(self) -> None:
        self._turns: list[EvaluatedTurn] = []

    def on_tool_calls_evaluated(
        self, trainer: Trainer, pl_module: FunctionCallingModule, evaluated: list[EvaluatedTurn]
    ) -> None:
        """Keep it until the progress bar has ended."""
        self._turns = evaluated

    def on_predict_end(self, trainer: Trainer, pl_module: FunctionCallingModule) -> None:
        """Print it."""
        if trainer.is_global_zero:
            for turn in self._turns:
                print_message(Console(highlight=False), as_message(turn.text, pl_module.turn_generator.syntax))
