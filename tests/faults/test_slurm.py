"""A job of a made-up SLURM: an environment as srun gives it, and an `scontrol` that writes down what it is asked."""

import csv
import os
import signal
from pathlib import Path

import pytest
import torch
from tests.helpers.checkpoints import same, state_of
from tests.helpers.processes import Run, injected, start

JOB = "4711"


def scontrol(folder: Path, code: int = 0) -> Path:
    """A folder for PATH."""
    (folder / "bin").mkdir()
    file = folder / "bin" / "scontrol"
    file.write_text(
        f'#!/bin/sh\necho "$@" >> {folder}/asked\n[ {code} = 0 ] || echo "slurm_update error: no" >&2\nexit {code}\n'
    )
    file.chmod(0o755)
    return file.parent


def job(folder: Path, rank: int = 0, ranks: int = 1, **more: str) -> dict[str, str]:
    """What a task of the job finds in its environment."""
    slurm = {"JOB_ID": JOB, "NTASKS": ranks, "NTASKS_PER_NODE": ranks, "PROCID": rank, "LOCALID": rank, "NODEID": 0}
    variables = {f"SLURM_{name}": str(value) for name, value in slurm.items()}
    return {**variables, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **more}


def begin(folder: Path, tmp_path: Path, ranks: int = 1, **more: str) -> list[Run]:
    """The tasks of the job, all with the same command."""
    (tmp_path / "moment").mkdir(exist_ok=True)
    stop = injected("Moment", folder=tmp_path / "moment", moment="step", step=2)
    runs = []
    for rank in range(ranks):
        run = start(
            folder,
            "--model.generation.max_new_tokens=2",
            callbacks=stop,
            devices=ranks,
            **job(tmp_path, rank, ranks, **more),
        )
        runs.append(run)
    return runs


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs" / "tiny" / "version_0" / "metrics.csv").open() as file:
        found = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    return [{name: value for name, value in row.items() if "second" not in name} for row in found]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stop"), [(1, signal.SIGUSR1), (1, signal.SIGTERM), (2, signal.SIGUSR1)])
def test_a_job_is_requeued_and_goes_on_as_if_it_had_not_been(tmp_path, ranks, stop):
    """The same command again, without `--ckpt_path`: the same run, in its folder, bit-identical."""
    scontrol(tmp_path)
    first = begin(tmp_path, tmp_path, ranks=ranks)
    file = tmp_path / "moment" / str(ranks - 1)
    first[-1].wait_for(file)
    os.kill(int(file.read_text()), stop)
    for run in first:
        code, _ = run.ended(120)
        assert code == 128 + signal.SIGTERM, run.output
    asked = (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []
    assert asked == ([f"requeue {JOB}"] if stop == signal.SIGUSR1 else [])
    checkpoints = tmp_path / "runs" / "tiny" / "version_0" / "checkpoints"
    step = torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"]
    assert 2 <= step < 24 // ranks
    # SLURM counts only what it has restarted itself: where the run has asked for it, there need be no count.
    count = {} if stop == signal.SIGUSR1 else {"SLURM_RESTART_COUNT": "1"}
    for run in begin(tmp_path, tmp_path, ranks=ranks, **count):
        code, _ = run.ended(240)
        assert code == 0, run.output
    assert [path.name for path in (tmp_path / "runs" / "tiny").glob("version_*")] == ["version_0"]
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    whole = tmp_path / "whole"
    for run in begin(whole, tmp_path, ranks=ranks):
        code, _ = run.ended(240)
        assert code == 0, run.output
    expected = state_of(whole / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt")
    assert expected["global_step"] == 24 // ranks
    assert same(state_of(checkpoints / "last.ckpt"), expected)
    assert rows(tmp_path) == rows(whole)


@pytest.mark.slow
def test_a_job_that_slurm_does_not_requeue(tmp_path):
    """It is said, and there is a checkpoint to go on from."""
    scontrol(tmp_path, code=1)
    (run,) = begin(tmp_path, tmp_path)
    run.wait_for(tmp_path / "moment" / "0")
    os.kill(run.process.pid, signal.SIGUSR1)
    code, _ = run.ended(120)
    assert code == 143, run.output
    assert f"SLURM did not requeue job {JOB}: slurm_update error: no" in run.output
    assert f"--ckpt_path {tmp_path}" in run.output


def test_only_the_same_command_of_the_same_job_goes_on(tmp_path, monkeypatch):
    from lightning import Trainer

    from fc_lightning.training import slurm

    for name, value in job(tmp_path).items():
        monkeypatch.setenv(name, value)
    trainer = Trainer(logger=False, default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    assert slurm.requeues(trainer)
    assert slurm.recorded_run(trainer) is None
    slurm.record_run(trainer, tmp_path / "here")
    assert slurm.recorded_run(trainer) is None  # the job's second command, or the same by hand: it was not requeued
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert slurm.recorded_run(trainer) == tmp_path / "here"
    monkeypatch.setattr("sys.argv", ["main.py", "fit", "--config", "another.yaml"])
    assert slurm.recorded_run(trainer) is None
    slurm.record_run(trainer, tmp_path / "there", requeued=True)
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    assert slurm.recorded_run(trainer) == tmp_path / "there"
    monkeypatch.setenv("SLURM_JOB_ID", "4712")
    assert slurm.recorded_run(trainer) is None
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "4700")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert slurm.job_id() == "4700_3"
