"""Trackio, which Lightning has no logger for, and MLflow with a default that MLflow still takes."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from lightning.fabric.utilities.logger import _convert_params
from lightning.pytorch.loggers import Logger, MLFlowLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only


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
