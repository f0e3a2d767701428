"""SLURM: a job that is requeued goes on by itself, with its own run.

Lightning's way is a file `hpc_ckpt_N.ckpt` in the folder that the command is run in: whichever job starts there next
takes it, and begins a run of its own with it. Here the same command of the same job finds the run that it has begun.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from lightning import Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment

from fc_lightning.training.run_folders import runs_root
from fc_lightning.utils.atomic_files import write_text

_REQUEUED = "\nrequeued"


def requeues(trainer: Trainer) -> bool:
    """Whether the run is one of a SLURM job that is to be requeued."""
    environment = trainer._accelerator_connector.cluster_environment
    return isinstance(environment, SLURMEnvironment) and environment.auto_requeue and "SLURM_JOB_ID" in os.environ


def job_id() -> str:
    """As ``scontrol`` takes it; of an array, with the task."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def requeue() -> str:
    """Have SLURM start the job anew.

    Returns:
        Why it could not be asked, nothing where it was.
    """
    try:
        done = subprocess.run(["scontrol", "requeue", job_id()], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"scontrol: {error.strerror}"
    return (done.stderr.strip() or f"exit code {done.returncode}").split("\n")[0] if done.returncode else ""


def note(trainer: Trainer, checkpoints: Path, requeued: bool = False) -> None:
    """Note where this command of this job has its checkpoints.

    Args:
        trainer: Knows where its runs lie.
        checkpoints: The folder.
        requeued: Whether it is to go on from there; SLURM itself says so of a job that it has restarted.

    Raises:
        DiskError: If it cannot be written.
    """
    write_text(_file(trainer), f"{checkpoints.absolute()}{_REQUEUED if requeued else ''}")


def noted(trainer: Trainer) -> Path | None:
    """The folder of checkpoints that a requeued job goes on from; None where it is started for the first time."""
    file = _file(trainer)
    if not file.is_file():
        return None
    folder, requeued, _ = file.read_text(encoding="utf-8").partition(_REQUEUED)
    restarted = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
    return Path(folder) if requeued or restarted else None


def _file(trainer: Trainer) -> Path:
    command = hashlib.sha256("\0".join(sys.argv).encode()).hexdigest()[:12]
    return runs_root(trainer) / ".slurm" / f"{job_id()}-{command}"
