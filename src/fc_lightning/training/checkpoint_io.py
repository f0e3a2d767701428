"""Checkpoints on disk: there whole or not at all, known by their content, and never executed.

A file ends with the SHA-256 of what is before it. It is written beside its place, synced, read back and only then given
its name; `torch.load` reads such a file as it does any other.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info

from fc_lightning.utils.atomic_files import OLD_SUFFIX, PARTIAL_SUFFIX, sync_folder, wrap_os_errors
from fc_lightning.utils.errors import first_line

_MARK = b"\nfc-lightning sha256 "
_TRAILER = len(_MARK) + 64 + 1
_OURS = "fc_lightning"  # a key of checkpoints that must end with a checksum
_END_OF_ZIP = b"PK\x05\x06"  # 22 bytes from the end, where nothing was added to the archive


class CheckpointError(ValueError):
    """A checkpoint cannot be written, read or continued. The message says which, why and what to do."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Reads and writes checkpoints as Lightning asks, so that a kill or a full disk never costs the one before."""

    def __init__(self) -> None:
        self._folders: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; it has its name only once it is safely on disk.

        Raises:
            CheckpointError: If it cannot be written, or could not be loaded again.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        checkpoint = {**checkpoint, _OURS: 1}
        partial = path.with_name(path.name + PARTIAL_SUFFIX)
        with writing(path, lambda: _size(checkpoint)):
            try:
                # A folder that was there and is gone was taken away: by hand, or with the disk that it was on.
                if path.parent not in self._folders:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    sweep(path.parent)
                self._folders.add(path.parent)
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
        """Read a checkpoint, whatever was asked for as plain data only."""
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        return read_checkpoint(Path(path), map_location)


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """All that a checkpoint holds.

    Raises:
        CheckpointError: If it is damaged, or holds anything but tensors and plain data. The newest whole one beside it
            is named.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint (`--ckpt_path`)")
    try:
        return _read(path, map_location)
    except CheckpointError as error:
        before = next((one for one in newest_first([path.parent]) if one != path and is_intact(one)), None)
        offer = f"the newest whole one beside it: --ckpt_path {before}" if before else "there is no other beside it"
        raise CheckpointError(f"{error}; {offer}") from error


def is_intact(path: Path) -> bool:
    """Whether a file is a checkpoint that can be loaded."""
    try:
        _read(path, "meta")
    except CheckpointError:
        return False
    return True


def newest_first(folders: Iterable[Path]) -> list[Path]:
    """The checkpoints anywhere below some folders, whole or not; of those written together, ``last`` first."""
    files = {file for folder in folders for file in folder.glob("**/*.ckpt") if file.is_file()}
    return sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.stem.startswith("last")), reverse=True)


def last_checkpoint(folders: Iterable[Path]) -> Path | None:
    """The newest whole checkpoint below some folders, None if there is none; broken ones are told."""
    for file in newest_first(folders):
        try:
            _read(file, "meta")
        except CheckpointError as error:
            rank_zero_info(f"{error}; trying the one before it")
            continue
        return file
    return None


def sweep(folder: Path) -> None:
    """Remove what killed processes have left half done in a folder of checkpoints."""
    for orphan in folder.glob(f"*{PARTIAL_SUFFIX}"):
        shutil.rmtree(orphan) if orphan.is_dir() else orphan.unlink()
    for old in folder.glob(f"*{OLD_SUFFIX}"):
        shutil.rmtree(old) if old.with_suffix("").exists() else old.rename(old.with_suffix(""))


def writing(path: Path, size: Callable[[], int] | None = None) -> AbstractContextManager[None]:
    """Tell in one sentence that what belongs to a checkpoint cannot be written, see :func:`fc_lightning.utils.atomic_files.wrap_os_errors`.

    Raises:
        CheckpointError: Instead of the system's error; it names the newest whole checkpoint.
    """

    def before() -> str:
        whole = next((one for one in newest_first([path.parent]) if is_intact(one)), None)
        return f"; the newest whole checkpoint is {whole}" if whole else ""

    return wrap_os_errors(path, size, CheckpointError, before)


class _Hashing:
    """A file for `torch.save` that counts and hashes what goes through it.

    An exception would have to pass through C++ that does not expect one: the first is kept until :meth:`close`.
    """

    def __init__(self, file: IO[bytes] | None):
        self.file, self.size, self.digest = file, 0, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.size += len(data)
        if self.file is not None and self.error is None:
            self.digest.update(data)
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        """Add the checksum, and see the file onto the disk."""
        assert self.file is not None
        if self.error is not None:
            raise self.error
        self.file.write(_MARK + self.digest.hexdigest().encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        hashing = _Hashing(file)
        torch.save(checkpoint, cast(IO[bytes], hashing))
        hashing.close()
        if hasattr(os, "posix_fadvise"):  # read back from the disk, not from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _size(checkpoint: dict[str, Any]) -> int:
    counting = _Hashing(None)
    torch.save(checkpoint, cast(IO[bytes], counting))
    return counting.size + _TRAILER


def _check_written(partial: Path, path: Path) -> None:
    try:
        _read(partial, "meta")
    except CheckpointError as error:
        reason = str(error).removeprefix(f"{partial}: ")
        raise CheckpointError(f"{path}: was not kept, since what was written {reason}") from error


def _read(path: Path, map_location: Any) -> dict[str, Any]:
    """A checkpoint, if its content is what was written."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TRAILER))
        trailer = file.read()
        marked = trailer.startswith(_MARK) and size > _TRAILER
        if marked and trailer != _MARK + _digest(file, size - _TRAILER) + b"\n":
            raise CheckpointError(f"{path}: cannot be read as a checkpoint: its content is not what was written")
    # Lightning's own checkpoints have no more than the CRC of each record.
    if not marked and (trailer[-22:-18] != _END_OF_ZIP or not _archive_is_whole(path)):
        raise CheckpointError(f"{path}: cannot be read as a checkpoint: it is cut off, damaged, or something else")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found.group(1)})" if found else ""
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint: it holds more than tensors and plain data{what}; "
            "that is never run"
        ) from error
    except Exception as error:  # torch raises whatever the damage leads to
        raise CheckpointError(f"{path}: cannot be read as a checkpoint: {first_line(error)}") from error
    if not isinstance(checkpoint, dict) or (not marked and _OURS in checkpoint):
        raise CheckpointError(f"{path}: cannot be read as a checkpoint: its end is missing")
    return checkpoint


def _digest(file: IO[bytes], size: int) -> bytes:
    digest = hashlib.sha256()
    file.seek(0)
    while size and (chunk := file.read(min(size, 1 << 22))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest().encode()


def _archive_is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        return False
