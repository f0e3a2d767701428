"""Sources: files and datasets that rows are read from, each row with its place (``file:row``)."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, compress, cycle, islice, repeat
from pathlib import Path
from typing import Any, TextIO

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats import RowError, read_row

_SUFFIXES = (".json", ".jsonl", ".parquet")
# Characters, about a million tokens; a longer row is not parsed.
MAX_ROW = 4_000_000
# Each turn of an evaluated conversation is a prompt with all turns before it.
_MAX_TURNS = 1000

Row = dict[str, Any] | RowError


class DataError(ValueError):
    """The data cannot be used as configured. The message says where the problem is and what to do."""


@dataclass(frozen=True)
class Source:
    """A dataset, given as file, folder or hub id.

    Attributes:
        path: A JSON, JSONL or Parquet file, a folder of such files, a folder written by ``Dataset.save_to_disk``, or
            the id of a hub dataset.
        name: Configuration of a hub dataset.
        split: Split of a hub dataset or a saved folder.
        revision: Commit, tag or branch of a hub dataset.
        format: Name of the row format, or ``module:function`` of your own reader; detected by default.
        limit: Number of rows to use, from the first; all by default.
        weight: Share of this source among the rows of an epoch, relative to the other weights. Either every source has
            a weight or none; without weights every row is used once per epoch.
    """

    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    format: str | None = None
    limit: int | None = None
    weight: float | None = None

    def rows(self, start: int = 0, step: int = 1, stream: bool = False, block: int = 1) -> Iterator[tuple[str, Row]]:
        """Yield the rows number ``start``, ``start + step``, …, each with its place (``file:row``, counted from 1).

        An invalid row is yielded as a :class:`fc_lightning.data.formats.RowError`. Skipped rows are not parsed.

        Args:
            start: The first row, counted from 0.
            step: Distance between rows.
            stream: Whether to stream a hub dataset instead of downloading it first.
            block: Number of rows that ``start`` and ``step`` count as one.

        Raises:
            DataError: If the path does not exist or cannot be read.
        """
        path = Path(self.path)
        if self._is_saved():
            yield from self._dataset_rows(datasets.load_from_disk(self.path), start, step, block)
        elif files := [file for file in self._files() if file.suffix in _SUFFIXES]:
            rows = chain.from_iterable(map(_file_rows, files))
            for place, parse in _every_nth_block(islice(rows, self.limit), start, step, block):
                yield place, parse()
        elif path.exists():
            raise DataError(f"{self.path}: the folder has no {', '.join(_SUFFIXES)} file and no saved dataset")
        elif not self._is_on_hub():
            raise DataError(f"{self.path}: file or folder not found")
        else:
            yield from self._dataset_rows(_from_hub(self, stream), start, step, block)

    def read(self, row: Row, place: str) -> Conversation | RowError:
        """Read a row into a conversation, or return the error."""
        if isinstance(row, RowError):
            return row
        try:
            conversation = read_row(row, self.format, default_id(place))
        except RowError as error:
            return error
        if sum(len(message.content) for message in conversation.messages) > MAX_ROW:
            return RowError(f"longer than {MAX_ROW:,} characters")
        if len(conversation.messages) > _MAX_TURNS:
            return RowError(f"{len(conversation.messages):,} messages, more than {_MAX_TURNS:,}")
        return conversation

    def fingerprint(self) -> str:
        """A digest that changes whenever the rows may have changed."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode())
        for file in self._files():
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def quick_fingerprint(self) -> str:
        """A fingerprint that does not read the rows: the files' names and sizes."""
        files = [(file.name, file.stat().st_size) for file in self._files()]
        return json.dumps([{**asdict(self), "path": Path(self.path).name}, files], sort_keys=True)

    def _files(self) -> list[Path]:
        path = Path(self.path)
        if path.is_dir():
            return sorted(file for file in path.rglob("*") if file.suffix in (*_SUFFIXES, ".arrow"))
        return [path] if path.is_file() else []

    def is_divisible(self) -> bool:
        """Whether a part can be read without parsing everything."""
        return self._is_saved() or not any(file.suffix == ".json" for file in self._files())

    def size(self) -> int:
        """Size in bytes."""
        if self._is_on_hub():
            return int(_from_hub(self, False).data.nbytes)
        return sum(file.stat().st_size for file in self._files())

    def _is_on_hub(self) -> bool:
        local = self.path.startswith((".", "/", "~")) or self.path.count("/") != 1
        return not (local or Path(self.path).exists() or Path(self.path).suffix in _SUFFIXES)

    def _is_saved(self) -> bool:
        return any((Path(self.path) / name).exists() for name in ("dataset_info.json", "dataset_dict.json"))

    def _dataset_rows(self, dataset: Any, start: int, step: int, block: int) -> Iterator[tuple[str, Row]]:
        if isinstance(dataset, datasets.DatasetDict):
            if self.split not in dataset:
                raise DataError(f"{self.path}: no split {self.split!r}; available: {', '.join(sorted(dataset))}")
            dataset = dataset[self.split]
        if isinstance(dataset, datasets.IterableDataset):
            rows: Iterator[tuple[int, Any]] = _every_nth_block(
                islice(enumerate(dataset, 1), self.limit), start, step, block
            )
        else:
            end = len(dataset) if self.limit is None else min(self.limit, len(dataset))
            numbers = range(start, end, step)
            parts = [numbers]
            if block > 1:  # adjacent rows are read together
                parts = [range(n, min(n + block, end)) for n in range(start * block, end, step * block)]
            rows = ((n + 1, row) for part in parts for n, row in zip(part, dataset.select(part), strict=True))
        for number, row in rows:
            yield f"{self.path}:{number}", {key: _without_nulls(value) for key, value in row.items()}


@functools.lru_cache(maxsize=8)
def _from_hub(source: Source, stream: bool) -> Any:
    try:
        return datasets.load_dataset(
            source.path, source.name, split=source.split, revision=source.revision, streaming=stream
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"{source.path}: not a local file or folder, and the hub dataset of that name cannot be loaded: {error}"
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
    if any(weight <= 0 for weight in given):
        raise DataError("`data.train`: a `weight` must be positive; remove sources you do not want")
    return given or None


def _file_rows(file: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Yield each row's place, and a function that parses it."""
    if file.suffix == ".jsonl":
        # Bytes that are not UTF-8 become lone surrogates, which are rejected later: the row is not silently changed.
        with file.open(encoding="utf-8", errors="surrogateescape") as stream:
            for number, line in enumerate(_lines(stream), 1):
                if not line.isspace():
                    yield f"{file}:{number}", partial(_parse_line, line)
    elif file.suffix == ".json":
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}: not JSON ({error}); one object per line needs the suffix .jsonl") from error
        if not isinstance(rows, list):
            raise DataError(f"{file}: expected a list of rows, got {type(rows).__name__}")
        for number, row in enumerate(rows, 1):
            yield f"{file}:{number}", partial(_checked, row)
    else:
        number = 0
        try:
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=1024):
                for index in range(len(batch)):
                    number += 1
                    yield f"{file}:{number}", partial(_parse_record, batch, index)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: cannot read Parquet after row {number:,}: {error}") from error


def _lines(stream: TextIO) -> Iterator[str]:
    """Yield the lines; only the beginning of a line that is too long."""
    while line := stream.readline(MAX_ROW + 1):
        rest = line
        while len(line) > MAX_ROW and rest and not rest.endswith("\n"):
            rest = stream.readline(MAX_ROW)
        yield line


def _parse_line(line: str) -> Row:
    if len(line) > MAX_ROW:
        return RowError(f"longer than {MAX_ROW:,} characters: {brief(line.strip(), 80)}")
    try:
        return _checked(json.loads(line))
    except RecursionError:
        return RowError("the row is nested too deeply")
    except ValueError as error:
        return RowError(f"not JSON ({error}): {brief(line.strip(), 80)}")


def _parse_record(batch: pa.RecordBatch, index: int) -> Row:
    record = batch.slice(index, 1)
    if record.nbytes > 4 * MAX_ROW:
        return RowError(f"longer than {4 * MAX_ROW:,} bytes")
    return {key: _without_nulls(value) for key, value in record.to_pylist()[0].items()}


def _checked(row: Any) -> Row:
    return row if isinstance(row, dict) else RowError(f"a row must be an object, not {type(row).__name__}")


def _without_nulls(value: Any) -> Any:
    """The value without the nulls in its objects.

    A column of objects gives each of them the keys of all: an argument that only another row's call has is null here,
    and cannot be told from a real null.
    """
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def default_id(place: str) -> str:
    """The id of a row without an id."""
    path, _, number = place.rpartition(":")
    return f"{Path(path).stem}_{number}"


def brief(text: str, limit: int = 300) -> str:
    """Shorten and escape a text for messages."""
    text = text if len(text) <= limit else text[:limit] + "…"
    return text.encode(errors="backslashreplace").decode()
