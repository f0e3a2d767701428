"""Processes that are killed while they save: a checkpoint is always left, and at most one interval is lost."""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
import torch
from tests.helpers.checkpoints import FULL

from fc_lightning.training.checkpoint_io import AtomicCheckpointIO, last_checkpoint, read_checkpoint

KILLS = 100 if FULL else 4  # for each of the two temporary folders
MOST_KILLS = 100  # until one hits a file that is being written
PADDING = torch.arange(500_000)  # 4 MB


class InPlace(AtomicCheckpointIO):
    """What a checkpoint must not be: written where the one before is."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        torch.save(checkpoint, path)


def save_without_end(io, folder, tmp, start, every, done):
    """As ModelCheckpoint does it: the new one, away with the one before, and `last`."""
    tempfile.tempdir = os.environ["TMPDIR"] = tmp
    torch.set_num_threads(1)
    step, before = start, None
    while True:
        step += 1
        checkpoint = {"global_step": step, "state_dict": {"weight": PADDING + step}}
        if every:
            path = folder / f"step={step}.ckpt"
            io.save_checkpoint(checkpoint, path)
            if before:
                io.remove_checkpoint(before)
            before = path
        io.save_checkpoint(checkpoint, folder / "last.ckpt")
        done.value = step


def kill_one(io, folder: Path, tmp: str, start: int, rng: random.Random) -> tuple[int, int]:
    """The last step that was saved before the kill, and the step of the checkpoint that is there after it."""
    fork = multiprocessing.get_context("fork")
    done = fork.Value("i", start)
    child = fork.Process(target=save_without_end, args=(io, folder, tmp, start, rng.random() < 0.5, done))
    child.start()
    wanted, began = start + rng.randint(1, 2), time.monotonic()
    while done.value < wanted and child.is_alive():
        time.sleep(0.001)
    time.sleep(rng.random() * (time.monotonic() - began) / (wanted - start))  # anywhere in the next save
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    found = last_checkpoint([folder])
    saved = read_checkpoint(found) if found else {"global_step": 0, "state_dict": {"weight": PADDING}}
    assert torch.equal(saved["state_dict"]["weight"], PADDING + saved["global_step"])
    return done.value, saved["global_step"]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["same", "other"])
def test_a_kill_while_saving_costs_at_most_one_interval(tmp_path, place):
    rng = random.Random(place)
    folder, tmp = tmp_path / "checkpoints", tmp_path
    if place == "other":
        other = "/dev/shm" if os.stat("/dev/shm").st_dev != tmp_path.stat().st_dev else "/tmp"
        tmp = Path(tempfile.mkdtemp(dir=other))
    newest, orphans, kills = 0, 0, 0
    while kills < KILLS or (not orphans and kills < MOST_KILLS):
        kills += 1
        done, newest = kill_one(AtomicCheckpointIO(), folder, str(tmp), newest, rng)
        assert newest in (done, done + 1)
        orphans += sum(1 for _ in folder.glob("*.partial"))
    AtomicCheckpointIO().save_checkpoint({"global_step": 1}, folder / "one.ckpt")
    assert orphans  # kills did hit a file that was being written,
    assert not list(folder.glob("*.partial"))  # and what they left is swept by the next run
    if place == "other":
        shutil.rmtree(tmp)


@pytest.mark.slow
def test_these_kills_would_destroy_a_checkpoint_that_is_written_in_place(tmp_path):
    rng = random.Random(0)
    lost, number = 0, 0
    while not lost and number < MOST_KILLS:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        with contextlib.suppress(AssertionError):
            done, newest = kill_one(InPlace(), folder, str(tmp_path), 0, rng)
            lost += newest not in (done, done + 1)
    assert lost
