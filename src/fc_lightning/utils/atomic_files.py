"""Writing to disk: a file is there whole or not at all, and where it cannot be written, one sentence says so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL_SUFFIX = ".partial"  # what is being written
OLD_SUFFIX = ".old"  # what is being replaced


class DiskError(ValueError):
    """Something cannot be written. The message says what, why, and how much room there is."""


@contextmanager
def wrap_os_errors(
    path: Path,
    size: Callable[[], int] | None = None,
    error_type: type[ValueError] = DiskError,
    details: str | Callable[[], str] = "",
) -> Iterator[None]:
    """Tell in one sentence that a file or a folder cannot be written: full, read-only or vanished disks.

    Args:
        path: What is being written. Errors about files elsewhere are left as they are.
        size: Gives the bytes that it needs, if known.
        error_type: What is raised.
        details: What there is to say besides, or what gives it.

    Raises:
        ValueError: ``error``, instead of the system's.
    """
    try:
        yield
    except Exception as cause:
        if not is_write_error(cause, path):
            raise
        needed = f"{size():,} bytes are needed, " if size else ""
        said = details() if callable(details) else details
        raise error_type(
            f"{path}: could not be written: {os_error_text(cause)}; {needed}{describe_free_space(path)}{said}"
        ) from cause


def os_error_text(error: Exception) -> str:
    """What the system says."""
    return getattr(error, "strerror", None) or str(error)


def describe_free_space(path: Path) -> str:
    """How much room there is for a file."""
    existing = next((folder for folder in path.absolute().parents if folder.is_dir()), Path("/"))
    return f"{shutil.disk_usage(existing).free:,} bytes are free there"


def write_text(path: Path, text: str) -> None:
    """Write a text file, or write it anew: the one before stays until the new one is whole.

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
    """Where this process may write what is to be at a path in the end; what killed processes have left is removed.

    Who calls it holds the path's lock: nobody else is writing.
    """
    for left in path.parent.glob(f"{path.name}.*{PARTIAL_SUFFIX}"):
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
    return path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")


def is_write_error(error: Exception, path: Path) -> bool:
    """Whether the system has refused to write something; it names no file where it is an open one that does not fit."""
    if not isinstance(error, OSError):
        return "(os error" in str(error)  # as the tokenizers and safetensors libraries wrap it
    if error.errno is None:  # of a network, or made up by a library
        return False
    if not isinstance(error.filename, str):
        return True
    named, path = Path(error.filename).absolute(), path.absolute()
    return named.is_relative_to(path.parent) or path.is_relative_to(named)


@contextmanager
def atomic_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """A folder to write into that gets its name once everything is on disk; what was begun is removed on any error.

    Args:
        folder: Its name in the end.
        replace: Whether an older folder of that name gives way to it.
    """
    partial, old = folder.with_name(folder.name + PARTIAL_SUFFIX), folder.with_name(folder.name + OLD_SUFFIX)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        for file in partial.iterdir():
            file.chmod(0o666 & ~umask)  # safetensors makes files that only their owner may read
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        if replace and folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        partial.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Have a folder's names on disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
