"""Loggers: those that a run goes on without where they cannot write, Hugging Face's trackio, and MLflow."""

from __future__ import annotations

import csv
import functools
import os
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.logger import _convert_params
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from fc_lightning.utils.atomic_files import PARTIAL_SUFFIX, describe_free_space, is_write_error, os_error_text

_WRITES = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize")


def ignore_write_errors(logger: Logger) -> None:
    """Have a run go on where a logger's disk is full or gone: it is told once, and the logger goes without.

    The rows of ``metrics.csv`` are kept meanwhile, and written when there is room again.
    """
    if not hasattr(logger, "_spares_the_run"):
        logger._spares_the_run = True
        for name in _WRITES:
            setattr(logger, name, _sparing(logger, getattr(logger, name)))


def _sparing(logger: Logger, write: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(write)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if isinstance(logger, CSVLogger) and type(logger._experiment) is ExperimentWriter:
            logger._experiment.__class__ = AtomicMetricsWriter
        try:
            return write(*args, **kwargs)
        except Exception as raised:
            place = Path(getattr(logger, "log_dir", None) or logger.save_dir or ".")
            # TensorBoard's says that a number cannot be logged, and the system's is behind it.
            error = next((one for one in (raised, raised.__context__) if isinstance(one, OSError)), None)
            if error is None or not is_write_error(error, place):
                raise
            if logger._spares_the_run:
                rank_zero_warn(
                    f"{place}: {type(logger).__name__} could not write there: {os_error_text(error)}; "
                    f"{describe_free_space(place / '_')}; "
                    "the run goes on without what it logs"
                )
            logger._spares_the_run = False

    return wrapper


class AtomicMetricsWriter(ExperimentWriter):
    """Writes ``metrics.csv`` so that a full disk or a kill costs no row that is there."""

    metrics_keys: list[str]

    def save(self) -> None:
        """Append the rows that have come since; all of them, or none."""
        file = Path(self.metrics_file_path)
        size = file.stat().st_size if file.exists() else None
        keys = sorted({*self.metrics_keys, *(key for row in self.metrics for key in row)})
        if size is not None and keys != self.metrics_keys:
            self._rewrite_with_new_header(keys)
            size = file.stat().st_size
        self.metrics_keys = keys
        try:
            super().save()
        except OSError:
            with suppress(OSError):
                file.unlink(missing_ok=True) if size is None else os.truncate(file, size)
            raise

    def _rewrite_with_new_header(self, fieldnames: Sequence[str]) -> None:
        file = Path(self.metrics_file_path)
        partial = file.with_name(file.name + PARTIAL_SUFFIX)
        try:
            with file.open(newline="") as old, partial.open("w", newline="") as new:
                writer = csv.DictWriter(new, fieldnames=fieldnames)
                writer.writeheader()
                writer.writerows(csv.DictReader(old))
            partial.replace(file)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


class MLflow(MLFlowLogger):
    """Lightning's logger for MLflow; plain folders, its default, are refused by MLflow since 3.

    Args:
        experiment_name: Groups runs.
        run_name: Name of this one; MLflow makes one up if not given.
        tracking_uri: Of a server or a data base; ``$MLFLOW_TRACKING_URI`` if not given, or else ``sqlite:///mlflow.db``.
    """

    def __init__(
        self, experiment_name: str = "fc-lightning", run_name: str | None = None, tracking_uri: str | None = None
    ):
        place = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        super().__init__(experiment_name=experiment_name, run_name=run_name, tracking_uri=place)


class Trackio(Logger):
    """Logs to trackio: ``trackio show`` is its page. Needs the package ``trackio``.

    Args:
        project: Groups runs.
        run: Name of this one; trackio makes one up if not given.
        space_id: A Space on the hub to log to, USER/NAME; on this machine if not given.
    """

    def __init__(self, project: str = "fc-lightning", run: str | None = None, space_id: str | None = None):
        super().__init__()
        if find_spec("trackio") is None:
            raise ModuleNotFoundError('the logger needs trackio: pip install "fc-lightning[trackio]"')
        self.project, self.run, self.space_id = project, run, space_id
        self._experiment: Any = None

    @property
    def name(self) -> str:
        """The project."""
        return self.project

    @property
    def version(self) -> str | None:
        """The run."""
        return self.run

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run of trackio, begun when it is first asked for."""
        if self._experiment is None:
            import trackio

            self._experiment = trackio.init(project=self.project, name=self.run, space_id=self.space_id)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Note the settings."""
        self.experiment.config.update(_convert_params(params))

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Note values."""
        self.experiment.log(metrics, step=step)

    @rank_zero_only
    def log_table(self, key: str, columns: list[str], data: Sequence[Sequence[Any]], step: int | None = None) -> None:
        """Note a table, as the logger of Weights & Biases does."""
        import trackio

        self.experiment.log({key: trackio.Table(columns=columns, data=[list(row) for row in data])}, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run."""
        if self._experiment is not None:
            self._experiment.finish()
            self._experiment = None
