"""SLURM: a requeued job resumes its own run automatically.

Lightning writes a file `hpc_ckpt_N.ckpt` to the working directory. The next job that starts there picks it up and
begins a new run from it. Here a requeued job finds its own run by job ID and command.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from lightning import Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment

from fc_lightning.training.lightning_internals import cluster_environment
from fc_lightning.training.run_folders import runs_root
from fc_lightning.utils.atomic_files import write_text

_REQUEUED = "\nrequeued"


def requeues(trainer: Trainer) -> bool:
    """Whether this run belongs to a SLURM job that is to be requeued."""
    environment = cluster_environment(trainer)
    return isinstance(environment, SLURMEnvironment) and environment.auto_requeue and "SLURM_JOB_ID" in os.environ


def job_id() -> str:
    """The job's id as ``scontrol`` takes it; in an array, with the task."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def requeue() -> str:
    """Ask SLURM to start the job again. Returns why that failed; empty if it did not."""
    try:
        done = subprocess.run(["scontrol", "requeue", job_id()], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"scontrol: {error.strerror}"
    return (done.stderr.strip() or f"exit code {done.returncode}").split("\n")[0] if done.returncode else ""


def record_run(trainer: Trainer, checkpoints: Path, requeued: bool = False) -> None:
    """Record the folder of checkpoints of this command in this job, and whether we have requeued the job."""
    write_text(_record_file(trainer), f"{checkpoints.absolute()}{_REQUEUED if requeued else ''}")


def recorded_run(trainer: Trainer) -> Path | None:
    """The folder of checkpoints that a requeued job resumes from; None if the job starts for the first time."""
    file = _record_file(trainer)
    if not file.is_file():
        return None
    folder, requeued, _ = file.read_text(encoding="utf-8").partition(_REQUEUED)
    restarted = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
    return Path(folder) if requeued or restarted else None


def _record_file(trainer: Trainer) -> Path:
    command = hashlib.sha256("\0".join(sys.argv).encode()).hexdigest()[:12]
    return runs_root(trainer) / ".slurm" / f"{job_id()}-{command}"
