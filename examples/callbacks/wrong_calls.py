"""Writes the incorrect calls of each evaluation to a JSON file, for a dashboard, a bot or a test."""

import json
from pathlib import Path

from lightning import Callback


class WrongCalls(Callback):
    """Writes the turns without an exact match.

    Args:
        path: Path of the JSON file in the run folder.
    """

    def __init__(self, path: str = "wrong_calls.json"):
        self.path = path

    def on_tool_calls_evaluated(self, trainer, pl_module, evaluated):
        """Replace the file."""
        folder = trainer.log_dir  # collective, so before the rank check
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        wrong = [turn.to_dict() for turn in evaluated if not turn.exact_match]
        file = Path(folder or ".") / self.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"step": trainer.global_step, "wrong": wrong}, indent=1), encoding="utf-8")
