"""The cache of prepared data: folders that say what they hold, so that damage is noticed."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fc_lightning.data.sources import DataError

_FILES = ("documents.arrow", "prompts.arrow", "report.json")
_FULL_OR_FORBIDDEN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_compared: set[tuple] = set()  # folders, with the state of their files, that this process has read


def seal(folder: Path) -> None:
    """Note the digests of a folder's files, once all are written."""
    digests = {name: _file_digest(folder / name) for name in _FILES}
    (folder / "digests.json").write_text(json.dumps(digests), encoding="utf-8")


def is_sound(folder: Path) -> bool:
    """Whether a folder is there and holds what was written. A process reads a folder once."""
    try:
        stats = [(folder / name).stat() for name in _FILES]
        key = (folder, *((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats))
        if key not in _compared:
            digests = read_digests(folder)
            if any(digests[name] != _file_digest(folder / name) for name in _FILES):
                return False
            _compared.add(key)
    except (OSError, ValueError, KeyError, TypeError):  # whatever the damage leads to
        return False
    return True


def read_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file, as :func:`seal` has noted it."""
    return json.loads((folder / "digests.json").read_text(encoding="utf-8"))


def digest_of_texts(texts: Iterable[str]) -> str:
    """SHA-256 of some texts, one behind the other."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
    return digest.hexdigest()


@contextmanager
def telling(folder: Path) -> Iterator[None]:
    """Tell in one sentence that a folder cannot be written.

    Raises:
        DataError: Instead of the system's error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL_OR_FORBIDDEN:
            raise
        existing = next(place for place in folder.parents if place.is_dir())
        room = f"{shutil.disk_usage(existing).free:,} bytes are free there"
        raise DataError(
            f"{folder}: could not be written: {error.strerror or error}; {room} (`data.cache_dir`)"
        ) from error


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
