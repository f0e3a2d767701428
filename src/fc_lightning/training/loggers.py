"""Loggers: makes write errors non-fatal, and adds Trackio and MLflow."""

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

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from fc_lightning.training.lightning_internals import reserve_version, use_csv_writer
from fc_lightning.utils.atomic_files import PARTIAL_SUFFIX, describe_free_space, is_write_error, os_error_text

_WRITING_METHODS = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize")


def make_robust(logger: Logger) -> None:
    """Make a logger survive write errors, and other runs that start at the same time.

    If its disk is full or gone, there is one warning, and the run continues without this logger's output. The rows of
    ``metrics.csv`` are kept in memory, and written once there is space again.
    """
    if hasattr(logger, "is_robust"):
        return
    logger.is_robust = True
    reserve_version(logger)
    warned: set[str] = set()
    for name in _WRITING_METHODS:
        setattr(logger, name, _ignoring_write_errors(logger, getattr(logger, name), warned))


def _ignoring_write_errors(logger: Logger, write: Callable[..., Any], warned: set[str]) -> Callable[..., Any]:
    @functools.wraps(write)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if isinstance(logger, CSVLogger):
            use_csv_writer(logger, AtomicMetricsWriter)
        try:
            return write(*args, **kwargs)
        except Exception as raised:
            folder = getattr(logger, "log_dir", None) or logger.save_dir or "."
            # TensorBoard says that a number cannot be logged, with the system's error as its context.
            error = next((each for each in (raised, raised.__context__) if isinstance(each, OSError)), None)
            if error is None or not is_write_error(error, Path(folder)):
                raise
            if not warned:
                rank_zero_warn(
                    f"{folder}: {type(logger).__name__} could not write there: {os_error_text(error)}; "
                    f"{describe_free_space(Path(folder) / '_')}; the run continues without this logger's output"
                )
            warned.add(folder)

    return wrapper


class AtomicMetricsWriter(ExperimentWriter):
    """Writes ``metrics.csv`` so that a full disk or a kill costs no existing row."""

    metrics_keys: list[str]

    def save(self) -> None:
        """Append the rows logged since the last call: all of them, or none."""
        file = Path(self.metrics_file_path)
        size = file.stat().st_size if file.exists() else None
        keys = sorted({*self.metrics_keys, *(key for row in self.metrics for key in row)})
        if size is not None and keys != self.metrics_keys:
            self._replace_header(keys)
            size = file.stat().st_size
        self.metrics_keys = keys
        try:
            super().save()
        except OSError:
            with suppress(OSError):
                file.unlink(missing_ok=True) if size is None else os.truncate(file, size)
            raise

    def _replace_header(self, fieldnames: Sequence[str]) -> None:
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
    """Lightning's MLflow logger with a default that works: MLflow 3 rejects the plain folders of Lightning's.

    Args:
        experiment_name: Groups runs.
        run_name: Name of this run; MLflow makes one up by default.
        tracking_uri: Of a server or a database; ``$MLFLOW_TRACKING_URI`` by default, or else ``sqlite:///mlflow.db``.
    """

    def __init__(
        self, experiment_name: str = "fc-lightning", run_name: str | None = None, tracking_uri: str | None = None
    ):
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        super().__init__(experiment_name=experiment_name, run_name=run_name, tracking_uri=uri)


class Trackio(Logger):
    """Logs to trackio, shown by ``trackio show``. Needs the package ``trackio``.

    Args:
        project: Groups runs.
        run: Name of this run; trackio makes one up by default.
        space_id: A Space on the Hub to log to, USER/NAME; this machine by default.
    """

    def __init__(self, project: str = "fc-lightning", run: str | None = None, space_id: str | None = None):
        super().__init__()
        if find_spec("trackio") is None:
            raise ModuleNotFoundError('the logger needs trackio: pip install "fc-lightning[trackio]"')
        self.project = project
        self.run = run
        self.space_id = space_id
        self._experiment: Any = None

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str | None:
        return self.run

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The trackio run, started at the first access."""
        if self._experiment is None:
            import trackio

            self._experiment = trackio.init(project=self.project, name=self.run, space_id=self.space_id)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace | None, *_: Any, **__: Any) -> None:
        self.experiment.config.update(vars(params) if isinstance(params, Namespace) else params or {})

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.experiment.log(metrics, step=step)

    @rank_zero_only
    def log_table(self, key: str, columns: list[str], data: Sequence[Sequence[Any]], step: int | None = None) -> None:
        """Log a table, with the arguments of the Weights & Biases logger."""
        import trackio

        self.experiment.log({key: trackio.Table(columns=columns, data=[list(row) for row in data])}, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._experiment is not None:
            self._experiment.finish()
            self._experiment = None
