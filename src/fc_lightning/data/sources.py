"""Sources: files and datasets that rows are read from, each row with its place (``file:row``)."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, compress, cycle, islice, repeat
from pathlib import Path
from typing import Any

import datasets

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.bfcl import PREFIX, bfcl_file
from fc_lightning.data.dataset_folders import FolderFiles, files_of
from fc_lightning.data.files import (
    MAX_ROW,
    SUFFIXES,
    DataError,
    Row,
    brief,
    count_rows,
    read_file,
    suffix_of,
    table_row,
)
from fc_lightning.data.formats import FORMATS, RowError, UnknownFormatError, read_row

__all__ = ["DataError", "Row", "Source", "brief", "default_id", "source_weights"]

# Each turn of an evaluated conversation is a prompt with all turns before it.
_MAX_TURNS = 1000


@dataclass(frozen=True)
class Source:
    """A dataset, given as a file, a folder or a Hub ID.

    Attributes:
        path: A file of rows (JSON, JSON Lines, CSV, Parquet; ``.gz`` and ``.zst`` too), a folder of such files (a
            downloaded Hub dataset, or one with LLaMA-Factory's ``dataset_info.json``), a folder written by
            ``Dataset.save_to_disk``, or the ID of a Hub dataset. ``bfcl:CATEGORY`` or ``bfcl:all`` reads questions of
            the Berkeley leaderboard.
        name: Configuration of a Hub dataset, or of a folder's README or ``dataset_info.json``.
        split: Split to read.
        revision: Commit, tag or branch of a Hub dataset.
        format: Name of the row format, or ``module:function`` of your own reader; detected by default.
        limit: Number of rows to use, starting with the first; all by default.
        weight: Sampling weight of this source in an epoch, relative to the others. Either every source has a weight or
            none; without weights every row is used once per epoch.
    """

    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    format: str | None = None
    limit: int | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise DataError(f"{self.path}: `limit` must be at least 1, not {self.limit}")

    def rows(self, start: int = 0, step: int = 1, stream: bool = False, block: int = 1) -> Iterator[tuple[str, Row]]:
        """Yield the rows number ``start``, ``start + step``, …, each with its place (``file:row``, counted from 1).

        An invalid row is yielded as a :class:`fc_lightning.data.formats.RowError`. Skipped rows are not parsed.

        Args:
            start: The first row, counted from 0.
            step: Distance between rows.
            stream: Whether to stream a Hub dataset instead of downloading it first.
            block: Number of rows that ``start`` and ``step`` count as one.

        Raises:
            DataError: If the path does not exist or cannot be read.
        """
        if (dataset := self._dataset(stream)) is not None:
            yield from self._dataset_rows(dataset, start, step, block)
        else:
            files, transform = self._files()
            rows = chain.from_iterable(read_file(file, self.split) for file in files)
            for place, parse in _every_nth_block(islice(rows, self.limit), start, step, block):
                row = parse()
                yield place, row if transform is None or isinstance(row, RowError) else transform(row)

    def read(self, row: Row, place: str) -> Conversation | RowError:
        """Read a row into a conversation, or return the error.

        Raises:
            DataError: If a reader fails with anything but a :class:`fc_lightning.data.formats.RowError`.
        """
        if isinstance(row, RowError):
            return row
        try:
            conversation = read_row(row, self.format, default_id(place))
        except RowError as error:
            return error
        except UnknownFormatError:
            raise
        except Exception as error:
            reader = f"the reader of format {self.format!r}" if self.format else "a reader"
            raise DataError(f"{place}: {reader} failed with {type(error).__name__}: {error}") from error
        if sum(len(message.content) for message in conversation.messages) > MAX_ROW:
            return RowError(f"longer than {MAX_ROW:,} characters")
        if len(conversation.messages) > _MAX_TURNS:
            return RowError(f"{len(conversation.messages):,} messages, more than {_MAX_TURNS:,}")
        return conversation

    def fingerprint(self) -> str:
        """A digest that changes whenever the rows, or how they are read, may have changed."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode())
        digest.update(_reader_source(self.format))
        if self._is_on_hub():
            digest.update(str(_from_hub(self, False)._fingerprint).encode())
        for file in self.local_files():
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def quick_fingerprint(self) -> str:
        """A fingerprint that does not read the rows: the files' names and sizes."""
        files = [(file.name, file.stat().st_size) for file in self.local_files()]
        return json.dumps([{**asdict(self), "path": Path(self.path).name}, files], sort_keys=True)

    def is_divisible(self) -> bool:
        """Whether a part can be read without parsing everything."""
        return self.is_saved() or not any(suffix_of(file) == ".json" for file in self.local_files())

    def size(self) -> int:
        """Size in bytes."""
        if self._is_on_hub():
            return int(_from_hub(self, False).data.nbytes)
        return sum(file.stat().st_size for file in self.local_files())

    def limit_note(self) -> str:
        """A line that says how many rows ``limit`` excludes; empty if it excludes none."""
        if self.limit is None:
            return ""
        dataset = self._dataset()
        total = sum(count_rows(file, self.split) for file in self._files().files) if dataset is None else len(dataset)
        return f"{self.path}: first {self.limit:,} rows of {total:,} (`limit`)" if total > self.limit else ""

    def _files(self) -> FolderFiles:
        if self.path.startswith(PREFIX):
            return FolderFiles([bfcl_file(self.path)])
        path = Path(self.path).expanduser()
        if path.is_dir():
            found = files_of(path, self.split, self.name)
            if not found.files:
                raise DataError(f"{self.path}: the folder has no {', '.join(SUFFIXES)} file and no saved dataset")
            return found
        if not path.exists():
            raise DataError(f"{self.path}: file or folder not found")
        if suffix_of(path) not in SUFFIXES:
            raise DataError(
                f"{self.path}: cannot read {path.suffix or 'a file without a suffix'}; supported: "
                f"{', '.join(SUFFIXES)}, each also as .gz or .zst"
            )
        return FolderFiles([path])

    def local_files(self) -> list[Path]:
        """The files that the rows come from; none for a Hub dataset."""
        if self.is_saved():
            return sorted(file for file in Path(self.path).rglob("*") if file.suffix in (".arrow", ".json"))
        return [] if self._is_on_hub() else self._files().files

    def _is_on_hub(self) -> bool:
        is_local = self.path.startswith((".", "/", "~")) or self.path.count("/") != 1
        return not (is_local or Path(self.path).exists() or suffix_of(Path(self.path)) in SUFFIXES)

    def is_saved(self) -> bool:
        """Whether it is a folder written by ``Dataset.save_to_disk``."""
        return any((Path(self.path) / name).exists() for name in ("state.json", "dataset_dict.json"))

    def _dataset(self, stream: bool = False) -> Any:
        """The split of a saved dataset, or of one on the Hub; None for local files."""
        if not self.is_saved():
            return _from_hub(self, stream) if self._is_on_hub() else None
        dataset = datasets.load_from_disk(self.path)
        if not isinstance(dataset, datasets.DatasetDict):
            return dataset
        if self.split not in dataset:
            raise DataError(f"{self.path}: no split {self.split!r}; available: {', '.join(sorted(dataset))}")
        return dataset[self.split]

    def _dataset_rows(self, dataset: Any, start: int, step: int, block: int) -> Iterator[tuple[str, Row]]:
        if isinstance(dataset, datasets.IterableDataset):
            numbered = islice(enumerate(dataset, 1), self.limit)
            rows: Iterator[tuple[int, Any]] = _every_nth_block(numbered, start, step, block)
        else:
            end = len(dataset) if self.limit is None else min(self.limit, len(dataset))
            numbers = range(start, end, step)
            parts = [numbers]
            if block > 1:  # adjacent rows are read together
                parts = [range(n, min(n + block, end)) for n in range(start * block, end, step * block)]
            rows = ((n + 1, row) for part in parts for n, row in zip(part, dataset.select(part), strict=True))
        for number, row in rows:
            yield f"{self.path}:{number}", table_row(row)


@functools.lru_cache(maxsize=64)
def _reader_source(format: str | None) -> bytes:
    """The source code of a custom format's reader, or of all custom formats where the format is detected."""
    readers: list[Callable[..., Any]] = []
    if format is None or format in FORMATS:
        readers = [entry.reader for name, entry in FORMATS.items() if format in (None, name)]
    elif ":" in format or "." in format:
        module = format.partition(":")[0] if ":" in format else format.rpartition(".")[0]
        importlib.import_module(module)
        return _module_source(module)
    modules = sorted({getattr(reader, "__module__", "") or "" for reader in readers})
    return b"".join(_module_source(name) for name in modules if not name.startswith("fc_lightning."))


def _module_source(name: str) -> bytes:
    file = getattr(sys.modules.get(name), "__file__", None)
    return Path(file).read_bytes() if file and Path(file).is_file() else name.encode()


@functools.lru_cache(maxsize=8)
def _from_hub(source: Source, stream: bool) -> Any:
    try:
        return datasets.load_dataset(
            source.path, source.name, split=source.split, revision=source.revision, streaming=stream
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"{source.path}: not a local file or folder, and the Hub dataset of that name cannot be loaded: {error}"
        ) from error


def _every_nth_block(rows: Iterator[Any], start: int, step: int, block: int) -> Iterator[Any]:
    """Every ``step``-th block of rows, starting with block ``start``."""
    taken = cycle([*repeat(True, block), *repeat(False, block * (step - 1))])
    return compress(rows, chain(repeat(False, start * block), taken))


def source_weights(sources: Sequence[Source]) -> list[float] | None:
    """The sources' weights, or None if they have none.

    Raises:
        DataError: If only some sources have one, or one is not positive.
    """
    given = [source.weight for source in sources if source.weight is not None]
    if given and len(given) < len(sources):
        raise DataError("`data.train`: give every source a `weight`, or none")
    if not all(0 < weight < math.inf for weight in given):
        raise DataError("`data.train`: a `weight` must be positive and finite; remove sources you do not want")
    return given or None


def default_id(place: str) -> str:
    """The id of a row without an id."""
    path, _, number = place.rpartition(":")
    return f"{Path(path).stem}_{number}"
