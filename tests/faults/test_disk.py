"""Disks that are full, read-only or gone: one line with the path and the bytes, and what was there stays."""

import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from lightning import Callback

from fc_lightning.checkpoints import CheckpointError, WholeCheckpointIO, is_whole, read_checkpoint
from fc_lightning.cli import main

MEGABYTE = 1_000_000


@pytest.fixture
def disk(tmp_path):
    """A file system of 20 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", folder], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("a file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def checkpoint(step: int, megabytes: float) -> dict:
    return {"global_step": step, "state_dict": {"weight": torch.full((int(megabytes * MEGABYTE / 4),), float(step))}}


def check_refused(folder: Path, content: dict, old: Path) -> str:
    """A save must end with the sentence, and leave the old checkpoint and nothing else."""
    before = sorted(folder.iterdir()) if folder.is_dir() else []
    io = check_refused.io
    with pytest.raises(CheckpointError) as caught:
        io.save_checkpoint(content, folder / "last.ckpt")
    message = str(caught.value)
    assert message.startswith(f"{folder / 'last.ckpt'}: could not be written: ")
    assert "bytes are needed, " in message
    assert "bytes are free" in message
    assert "\n" not in message
    assert (sorted(folder.iterdir()) if folder.is_dir() else []) == before
    if folder.is_dir():
        assert is_whole(old)
        assert str(old) in message
    return message


@pytest.fixture
def saved(disk):
    """A folder on the disk with a checkpoint of 3 MB in it."""
    check_refused.io = io = WholeCheckpointIO()
    folder = disk / "run" / "checkpoints"
    io.save_checkpoint(checkpoint(1, 3), folder / "last.ckpt")
    return folder


@pytest.mark.parametrize("megabytes", [18, 18.5, 19, 20, 21, 25, 40, 60])
def test_a_checkpoint_that_is_larger_than_what_is_free(saved, megabytes):
    message = check_refused(saved, checkpoint(2, megabytes), saved / "last.ckpt")
    assert "No space left on device" in message
    needed = int(message.split(" bytes are needed")[0].split()[-1].replace(",", ""))
    assert needed == pytest.approx(megabytes * MEGABYTE, abs=4000)
    assert read_checkpoint(saved / "last.ckpt")["global_step"] == 1


@pytest.mark.parametrize("left", [0, 1, 4096, 100_000, 2_000_000])
def test_a_disk_that_others_fill_up(saved, left):
    free = shutil.disk_usage(saved).free
    (saved.parent / "other").write_bytes(bytes(free - left))
    check_refused(saved, checkpoint(2, 3), saved / "last.ckpt")
    (saved.parent / "other").unlink()
    check_refused.io.save_checkpoint(checkpoint(2, 3), saved / "last.ckpt")  # room again: the run could go on
    assert read_checkpoint(saved / "last.ckpt")["global_step"] == 2


@pytest.mark.parametrize("known", [True, False])
def test_a_read_only_folder(disk, saved, known):
    if not known:
        check_refused.io = WholeCheckpointIO()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert "Read-only file system" in check_refused(saved, checkpoint(2, 1), saved / "last.ckpt")


@pytest.mark.parametrize("gone", ["checkpoints", "run", "disk"])
def test_a_folder_that_vanishes(disk, saved, gone):
    if gone == "disk":
        subprocess.run(["umount", "-l", disk], check=True)
    else:
        shutil.rmtree(saved if gone == "checkpoints" else saved.parent)
    assert "No such file or directory" in check_refused(saved, checkpoint(2, 1), saved / "last.ckpt")
    if gone == "disk":
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], check=True)


def test_a_limit_on_the_size_of_files(tmp_path):
    """Where nothing can be mounted: the system refuses a write in the middle of the file, all the same."""
    check_refused.io = WholeCheckpointIO()
    check_refused.io.save_checkpoint(checkpoint(1, 1), tmp_path / "last.ckpt")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MEGABYTE, limits[1]))
    try:
        check_refused(tmp_path, checkpoint(2, 3), tmp_path / "last.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class Fault(Callback):
    """Makes a disk full, read-only or vanish at a step."""

    def __init__(self, kind: str, disk: str, step: int = 2):
        self.kind, self.disk, self.step, self.done = kind, Path(disk), step, False

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step < self.step or self.done:
            return
        self.done = True
        if self.kind == "full":
            (self.disk / "other").write_bytes(bytes(shutil.disk_usage(self.disk).free))
        elif self.kind == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", self.disk], check=True)
        else:
            shutil.rmtree(self.disk / "run")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "read-only", "gone"])
def test_a_run_ends_with_one_line_and_the_checkpoint_before(disk, tmp_path, capsys, kind):
    fault = f"{{class_path: tests.faults.test_disk.Fault, init_args: {{kind: {kind}, disk: {disk}}}}}"
    often = f"{{dirpath: {disk / 'run'}, every_n_train_steps: 1, save_top_k: -1}}"
    saving = f"{{class_path: ModelCheckpoint, init_args: {often}}}"
    arguments = ["fit", "--config=configs/debug/tiny.yaml", "--data.packing=false", "--data.validation=null"]
    arguments += [f"--trainer.logger.init_args.save_dir={tmp_path}", f"--trainer.callbacks=[{fault}, {saving}]"]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    error = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 1
    assert error.startswith(f"error: {disk / 'run' / 'epoch=0-step=3.ckpt'}: could not be written: ")
    assert "bytes are needed" in error
    if kind != "gone":
        assert [is_whole(path) for path in sorted((disk / "run").iterdir())] == [True, True]


@pytest.mark.parametrize("left", [0, 5000])
def test_prepared_data_finds_no_room(disk, tmp_path, capsys, left):
    (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - left))
    with pytest.raises(SystemExit):
        main(["audit", "--config=configs/debug/tiny.yaml", f"--data.cache_dir={disk}", f"--output={tmp_path}"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {disk}/data")
    assert "could not be written" in error
    assert "bytes are free there" in error
