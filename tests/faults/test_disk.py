"""Disks that are full, read-only or gone: one line with the path and the bytes, and what was there stays."""

import csv
import errno
import os
import resource
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest
import torch
from lightning import Callback
from lightning.pytorch.cli import LightningArgumentParser

from fc_lightning.cli.lightning_cli import main
from fc_lightning.training.checkpoint_io import AtomicCheckpointIO, CheckpointError, is_intact, read_checkpoint

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
        assert is_intact(old)
        assert str(old) in message
    return message


@pytest.fixture
def saved(disk):
    """A folder on the disk with a checkpoint of 3 MB in it."""
    check_refused.io = io = AtomicCheckpointIO()
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
        check_refused.io = AtomicCheckpointIO()
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
    check_refused.io = AtomicCheckpointIO()
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
        assert [is_intact(path) for path in sorted((disk / "run").iterdir())] == [True, True]


class Filler(Callback):
    """Fills a disk when a step begins, and makes room again some steps later; writes down what is there then."""

    def __init__(self, disk: str, step: int, until: int):
        self.disk, self.step, self.until = Path(disk), step, until

    def on_train_batch_start(self, trainer, *_):
        other = self.disk / "other"
        if self.step <= trainer.global_step < self.until and not other.exists():
            trainer.logger.save()
            self.before = (Path(trainer.log_dir) / "metrics.csv").read_text()
            other.write_bytes(bytes(shutil.disk_usage(self.disk).free))
            # More than fits into what is left of the files' last pages.
            trainer.loggers[-1].log_metrics({f"many/{number}": 0.0 for number in range(500)}, trainer.global_step)
        elif trainer.global_step >= self.until and other.exists():
            rows = (Path(trainer.log_dir) / "metrics.csv").read_text()
            (self.disk.parent / "kept").write_text(str(rows.startswith(self.before)))
            other.unlink()


def fit_on(disk: Path, tmp_path: Path, *callbacks: str, checkpoints: str = "") -> list[str]:
    saving = f"{{class_path: ModelCheckpoint, init_args: {{dirpath: {checkpoints or tmp_path}, save_last: true}}}}"
    listed = ", ".join([*callbacks, saving])
    return [
        *(
            "fit",
            "--config=configs/debug/tiny.yaml",
            "--data.packing=false",
        ),
        *("--data.train=[{path: data/quickstart/train.jsonl, limit: 16}]", "--trainer.val_check_interval=6"),
        *("--data.validation=[{path: data/quickstart/validation.jsonl, limit: 1}]", "--trainer.max_steps=8"),
        *(f"--trainer.logger.init_args.save_dir={disk}", "--trainer.logger.init_args.flush_logs_every_n_steps=1"),
        *("--model.generation={max_new_tokens: 2, do_sample: false}", f"--trainer.callbacks=[{listed}]"),
    ]


# TensorBoard writes in a thread of its own, which ends with the error.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_loggers_without_room_are_told_of_once_and_the_run_goes_on(disk, tmp_path):
    """The rows of metrics.csv come when there is room again, with a new column too; those before are never harmed."""
    filler = f"{{class_path: tests.faults.test_disk.Filler, init_args: {{disk: {disk}, step: 1, until: 5}}}}"
    writers = [f"{{class_path: fc_lightning.callbacks.{name}}}" for name in ("TensorBoard", "PredictionWriter")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(fit_on(disk, tmp_path, *writers, filler))
    said = [str(warning.message) for warning in caught if "No space left" in str(warning.message)]
    assert len([text for text in said if "CSVLogger could not write there" in text]) == 1
    assert len([text for text in said if "TensorBoardLogger could not write there" in text]) == 1
    (predictions,) = {text for text in said if "predictions.jsonl: could not be written: " in text}
    assert predictions.endswith(" bytes are needed, 0 bytes are free there; training continues")
    assert (tmp_path / "kept").read_text() == "True"
    (folder,) = disk.glob("tiny/version_0")
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["train/loss"]] == list(range(8))
    assert len([row for row in rows if row["val/loss"]]) == 2
    assert (folder / "predictions.jsonl").read_text().count("\n") == 1
    assert is_intact(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("subcommand", "file"),
    [("fit", "config.yaml"), ("test", "environment.json"), ("test", "predictions.jsonl"), ("test", "report.html")],
)
def test_a_file_of_a_run_without_room(tmp_path, capsys, monkeypatch, subcommand, file):
    """One line, with the bytes; what was there before stays."""
    write = Path.write_bytes

    def full(path, data):
        if path.name == f"{file}.partial":
            write(path, data[:10]) if data else None
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    if file == "config.yaml":
        monkeypatch.setattr(LightningArgumentParser, "save", lambda *_, **__: full(Path(f"{file}.partial"), b""))
    arguments = fit_on(
        tmp_path,
        tmp_path,
        "{class_path: fc_lightning.callbacks.PredictionWriter}",
        "{class_path: fc_lightning.callbacks.EvaluationReport}",
    )
    arguments[0] = subcommand
    with pytest.raises(SystemExit):
        main([*arguments, "--data.test=[{path: data/quickstart/validation.jsonl, limit: 1}]"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path / 'tiny' / 'version_0' / file}: could not be written: No space left")
    assert (" bytes are needed, " in error) == (file != "config.yaml")
    assert " bytes are free there" in error
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("left", [0, 5000])
def test_prepared_data_finds_no_room(disk, tmp_path, capsys, left):
    (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - left))
    with pytest.raises(SystemExit):
        main(["audit", "--config=configs/debug/tiny.yaml", f"--data.cache_dir={disk}", f"--output={tmp_path}"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {disk}/data")
    assert "could not be written" in error
    assert "bytes are free there" in error
