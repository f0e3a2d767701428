"""Atomic checkpoints: each is written to a temporary file, synced, verified and renamed. Loading one executes no code.

A checkpoint is an ordinary file of ``torch.save``. Its archive has a CRC of each record, which is verified before a
checkpoint is used.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info

from fc_lightning.models.fsdp import are_finite
from fc_lightning.utils.atomic_files import OLD_SUFFIX, PARTIAL_SUFFIX, sync_folder, wrap_os_errors
from fc_lightning.utils.errors import UserError, first_line

_REQUIRED = ("state_dict", "global_step", "epoch", "pytorch-lightning_version")


class CheckpointError(UserError):
    """A checkpoint cannot be written, read or resumed from. The message says which, why and what to do."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint I/O, but a killed process or a full disk never destroys the previous checkpoint."""

    def __init__(self) -> None:
        self._known_folders: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; it gets its name only once it is safely on disk.

        Raises:
            CheckpointError: If its weights are not finite, it cannot be written, or could not be loaded again.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        partial = path.with_name(path.name + PARTIAL_SUFFIX)
        check_finite(checkpoint.get("state_dict", {}), path)
        with wrap_write_errors(path, lambda: _size(checkpoint)):
            try:
                # Do not make a folder again that has disappeared: it was removed by hand or unmounted.
                if path.parent not in self._known_folders:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    remove_leftovers(path.parent)
                self._known_folders.add(path.parent)
                _write(checkpoint, partial)
                _check_written(partial, path)
                partial.replace(path)
                sync_folder(path.parent)
            finally:
                with suppress(OSError):
                    partial.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, loc: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, always as tensors and plain data only."""
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        return check_complete(read_checkpoint(Path(path), map_location), path)


def check_complete(checkpoint: dict[str, Any], place: Any) -> dict[str, Any]:
    """Check that a checkpoint has what Lightning and this package read, and return it; CheckpointError if not."""
    if missing := [key for key in _REQUIRED if key not in checkpoint]:
        raise CheckpointError(f"{place}: cannot be read as a checkpoint: it has no `{missing[0]}`")
    return checkpoint


def check_finite(weights: Mapping[str, Any], place: Any) -> None:
    """Check the weights that are to be written, or have been read.

    Raises:
        CheckpointError: If one is not finite, or so large that the square of its norm is not.
    """
    floating = {name: weight for name, weight in weights.items() if weight.is_floating_point()}
    if not are_finite(list(floating.values())):
        name = next(name for name, weight in floating.items() if not are_finite([weight]))
        raise CheckpointError(
            f"{place}: not usable: the weights are not finite, or too large to compute with (first in {name}); lower "
            "`model.learning_rate`, and continue from an earlier checkpoint"
        )


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        CheckpointError: If it is damaged, or holds anything but tensors and plain data. The message names the newest
            intact checkpoint next to it.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: checkpoint not found (`--ckpt_path`)")
    try:
        return _read(path, map_location)
    except CheckpointError as error:
        other = _newest_intact(path.parent, other_than=path)
        advice = (
            f"the newest intact checkpoint next to it: --ckpt_path {other}"
            if other
            else "the folder has no other intact checkpoint"
        )
        raise CheckpointError(f"{error}; {advice}") from error


def is_intact(path: Path) -> bool:
    """Whether a file is a checkpoint that can be loaded."""
    try:
        _read(path, "meta")
    except CheckpointError:
        return False
    return True


def _newest_intact(folder: Path, other_than: Path | None = None) -> Path | None:
    return next((file for file in newest_first(folder) if file != other_than and is_intact(file)), None)


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints below a folder, intact or not, those with the most optimizer steps first.

    The time of writing decides only between checkpoints of the same step: copies lose it, and clocks can be wrong.
    """

    def age(file: Path) -> tuple[float, int, bool]:
        return peek(file).get("global_step", float("inf")), file.stat().st_mtime_ns, file.stem == "last"

    return sorted((file for file in folder.glob("**/*.ckpt") if file.is_file()), key=age, reverse=True)


def last_checkpoint(folders: Iterable[Path]) -> Path | None:
    """The newest intact checkpoint of the first folder that has one, None if there is none.

    Damaged ones are reported and skipped.
    """
    files = (file for folder in folders for file in newest_first(folder))
    for file in dict.fromkeys(files):
        try:
            _read(file, "meta")
        except CheckpointError as error:
            rank_zero_info(f"{error}; trying the one before it")
            continue
        return file
    return None


def peek(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, without reading its tensors; empty if it cannot be read."""
    try:
        checkpoint = torch.load(path, map_location="meta", mmap=True, weights_only=True)
    except Exception:  # torch raises whatever the damage leads to
        return {}
    return checkpoint if isinstance(checkpoint, dict) else {}


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files of killed processes from a folder of checkpoints."""
    for partial in folder.glob(f"*{PARTIAL_SUFFIX}"):
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
    for old in folder.glob(f"*{OLD_SUFFIX}"):
        shutil.rmtree(old) if old.with_suffix("").exists() else old.rename(old.with_suffix(""))


def wrap_write_errors(path: Path, size: Callable[[], int] | None = None) -> AbstractContextManager[None]:
    """Report in one sentence that a checkpoint, or what belongs to it, cannot be written.

    Raises:
        CheckpointError: Instead of the system's error; it names the newest intact checkpoint.
    """

    def newest_intact() -> str:
        found = _newest_intact(path.parent)
        return f"; the newest intact checkpoint is {found}" if found else ""

    return wrap_os_errors(path, size, CheckpointError, newest_intact)


class _SizedFile:
    """A file for ``torch.save`` that counts bytes and keeps the first error for later.

    An exception raised in ``write`` would have to pass through C++ code that does not expect one.
    """

    def __init__(self, file: IO[bytes] | None):
        self.file = file
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.size += len(data)
        if self.file is not None and self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        pass


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        sized = _SizedFile(file)
        torch.save(checkpoint, cast(IO[bytes], sized))
        if sized.error is not None:
            raise sized.error
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # so that it is read back from the disk, not from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _size(checkpoint: dict[str, Any]) -> int:
    sized = _SizedFile(None)
    torch.save(checkpoint, cast(IO[bytes], sized))
    return sized.size


def _check_written(partial: Path, path: Path) -> None:
    try:
        _read(partial, "meta")
    except CheckpointError as error:
        reason = str(error).removeprefix(f"{partial}: ")
        raise CheckpointError(f"{path}: was discarded, because the data {reason}") from error


def _read(path: Path, map_location: Any) -> dict[str, Any]:
    """Read a checkpoint after verifying the CRC of each of its records."""
    try:
        with zipfile.ZipFile(path) as archive:
            is_damaged = archive.testzip() is not None
    except Exception:  # zipfile raises whatever the damage leads to
        is_damaged = True
    if is_damaged:
        raise CheckpointError(f"{path}: cannot be read as a checkpoint: it is truncated, damaged, or not a checkpoint")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found.group(1)})" if found else ""
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint: it contains more than tensors and plain data{what}, "
            "which is never executed"
        ) from error
    except Exception as error:  # torch raises whatever the damage leads to
        raise CheckpointError(f"{path}: cannot be read as a checkpoint: {first_line(error)}") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path}: cannot be read as a checkpoint: it holds a {type(checkpoint).__name__}")
    return checkpoint
