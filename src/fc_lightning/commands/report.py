"""``report``: compares runs."""

from __future__ import annotations

from pathlib import Path

from lightning import Trainer

from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.evaluation.report import ReportError, read_runs, write_report
from fc_lightning.training.module import FunctionCallingModule


def report(
    trainer: Trainer,
    model: FunctionCallingModule,
    datamodule: FunctionCallingDataModule,
    runs: list[str],
    output: str = "report",
) -> None:
    """Compare runs side by side, and say which differences are statistically significant.

    Writes ``OUTPUT.html`` and ``OUTPUT.md``.

    Args:
        trainer: Not used.
        model: Not used.
        datamodule: Not used.
        runs: Folders of runs, as written by ``fit`` and ``test``.
        output: Path of the two files, without a suffix.
    """
    if not Path(output).name:
        raise ReportError(f"{output!r}: not the name of a file (`--output`)")
    command = f"python main.py report --config CONFIG --runs '[{', '.join(runs)}]' --output {output}"
    write_report(read_runs([Path(run) for run in runs]), Path(output), command=command)
    print(f"{output}.html\n{output}.md")
