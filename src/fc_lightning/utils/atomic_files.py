"""Atomic writes: a file or folder appears complete or not at all, and a failed write is a one-line error."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fc_lightning.utils.errors import UserError

PARTIAL_SUFFIX = ".partial"  # being written
OLD_SUFFIX = ".old"  # being replaced


class DiskError(UserError):
    """A file or folder cannot be written. The message says which, why, and how much space is free."""


@contextmanager
def wrap_os_errors(
    path: Path,
    size: Callable[[], int] | None = None,
    error_type: type[ValueError] = DiskError,
    details: str | Callable[[], str] = "",
) -> Iterator[None]:
    """Turn the operating system's errors about a path into a one-line error: a disk is full, read-only or gone.

    Args:
        path: The file or folder that is being written. Errors about other files are not changed.
        size: Returns the number of bytes to write, if it is known.
        error_type: The exception to raise.
        details: Text to append to the message, or a function that returns it.

    Raises:
        ValueError: As ``error_type``, in place of the operating system's error.
    """
    try:
        yield
    except Exception as error:
        if not is_write_error(error, path):
            raise
        needed = f"{size():,} bytes are needed, " if size else ""
        appended = details() if callable(details) else details
        raise error_type(
            f"{path}: could not be written: {os_error_text(error)}; {needed}{describe_free_space(path)}{appended}"
        ) from error


def is_write_error(error: Exception, path: Path) -> bool:
    """Whether the operating system refused to write a path, its folder, or something inside it.

    An error without a file name comes from an open file and counts as one about the path.
    """
    if not isinstance(error, OSError):
        return "(os error" in str(error)  # as the tokenizers and safetensors libraries wrap it
    if error.errno is None:  # raised by a library, for example about the network
        return False
    if not isinstance(error.filename, str):
        return True
    named, path = Path(error.filename).absolute(), path.absolute()
    return named.is_relative_to(path.parent) or path.is_relative_to(named)


def os_error_text(error: Exception) -> str:
    """The operating system's description of an error."""
    return getattr(error, "strerror", None) or str(error)


def describe_free_space(path: Path) -> str:
    """How much space is free on the disk that a path is on."""
    existing = next((folder for folder in path.absolute().parents if folder.is_dir()), Path("/"))
    return f"{shutil.disk_usage(existing).free:,} bytes are free there"


def write_text(path: Path, text: str) -> None:
    """Write a text file. An existing file is kept until the new one is complete.

    Raises:
        DiskError: If it cannot be written.
    """
    data = text.encode()
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with wrap_os_errors(path, lambda: len(data)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.replace(path)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def partial_path(path: Path) -> Path:
    """Where this process writes a file or folder before it is renamed to its final path.

    The leftovers of killed processes are removed, so the caller must hold the path's lock.
    """
    for leftover in path.parent.glob(f"{path.name}.*{PARTIAL_SUFFIX}"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink()
    return path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")


@contextmanager
def atomic_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """A folder to write files into. It gets its final name once they are on disk, and is removed on any error.

    Args:
        folder: The final path.
        replace: Whether to replace an existing folder.
    """
    partial = folder.with_name(folder.name + PARTIAL_SUFFIX)
    old = folder.with_name(folder.name + OLD_SUFFIX)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        umask = os.umask(0)  # it can only be read by setting it
        os.umask(umask)
        for file in partial.iterdir():
            file.chmod(0o666 & ~umask)  # safetensors creates files that only their owner can read
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        if replace and folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        partial.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
