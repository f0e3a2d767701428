"""The cache of prepared data: digests of each folder's files detect damage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

_FILES = ("documents.arrow", "prompts.arrow", "report.json")
_verified: set[tuple] = set()  # folders, with the state of their files, that this process has verified


def write_digests(folder: Path) -> None:
    """Write the digests of a folder's files, after all of them are written."""
    digests = {name: _file_digest(folder / name) for name in _FILES}
    (folder / "digests.json").write_text(json.dumps(digests), encoding="utf-8")


def is_intact(folder: Path) -> bool:
    """Whether a folder exists and its files are unchanged. A process verifies a folder once."""
    try:
        stats = [(folder / name).stat() for name in _FILES]
        key = (folder, *((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats))
        if key not in _verified:
            digests = read_digests(folder)
            if any(digests[name] != _file_digest(folder / name) for name in _FILES):
                return False
            _verified.add(key)
    except (OSError, ValueError, KeyError, TypeError):  # any damage counts as not intact
        return False
    return True


def read_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file, as :func:`write_digests` wrote it."""
    return json.loads((folder / "digests.json").read_text(encoding="utf-8"))


def hash_texts(texts: Iterable[str]) -> str:
    """SHA-256 of concatenated texts."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
    return digest.hexdigest()


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
