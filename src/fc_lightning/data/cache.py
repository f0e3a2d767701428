"""The cache of prepared data: folders that say what they hold, so that damage is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

_FILES = ("documents.arrow", "prompts.arrow", "report.json")
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


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
