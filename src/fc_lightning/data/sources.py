"""Sources: where rows come from, and each row with the place where it stands."""

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
# A longer row is not even parsed; so many characters are some million tokens.
MAX_ROW = 4_000_000
# Each turn of an evaluated conversation is a prompt with all turns before it.
_MAX_TURNS = 1000

Row = dict[str, Any] | RowError


class DataError(ValueError):
    """The data cannot be used as the configuration asks. The message says where and what to do."""


@dataclass(frozen=True)
class Source:
    """A place that rows come from.

    Attributes:
        path: A JSON, JSONL or Parquet file, a folder of such files, a folder written by ``Dataset.save_to_disk``, or
            the id of a data set on the hub.
        name: The configuration of a hub data set.
        split: Which split of a hub data set or a saved folder.
        revision: Commit, tag or branch of a hub data set.
        format: Name of the row format, or ``module:function`` of a reader of your own; found by itself if not given.
        limit: Take only so many rows, the first ones.
        weight: Share of this source among the rows of an epoch, relative to the other sources' weights. If no source
            has one, every row is taken once; either all have one or none.
    """

    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    format: str | None = None
    limit: int | None = None
    weight: float | None = None

    def rows(self, start: int = 0, step: int = 1, stream: bool = False, block: int = 1) -> Iterator[tuple[str, Row]]:
        """The rows number ``start``, ``start + step``, …, each with its place (``file:row``, counted from 1).

        What is no row comes as the :class:`fc_lightning.data.formats.RowError` that says why. Rows between are passed over
        without being parsed.

        Args:
            start: The first row, counted from 0.
            step: To take every row, 1.
            stream: Whether to read a hub data set over the network, without downloading all of it first.
            block: Count in blocks of so many rows instead of rows.

        Raises:
            DataError: If there is nothing at the path.
        """
        path = Path(self.path)
        if self._is_saved():
            yield from self._dataset_rows(datasets.load_from_disk(self.path), start, step, block)
        elif files := [file for file in self._files() if file.suffix in _SUFFIXES]:
            rows = chain.from_iterable(map(_file_rows, files))
            for place, parse in _dealt(islice(rows, self.limit), start, step, block):
                yield place, parse()
        elif path.exists():
            raise DataError(f"{self.path}: no {', '.join(_SUFFIXES)} file and no saved data set there")
        elif not self._is_on_hub():
            raise DataError(f"{self.path}: there is no such file or folder")
        else:
            yield from self._dataset_rows(_from_hub(self, stream), start, step, block)

    def read(self, row: Row, place: str) -> Conversation | RowError:
        """The conversation that a row holds, or why it holds none."""
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
        """Changes whenever the rows may have changed."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode())
        for file in self._files():
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def outline(self) -> str:
        """A fingerprint that goes without reading the rows: the files' names and sizes."""
        files = [(file.name, file.stat().st_size) for file in self._files()]
        return json.dumps([{**asdict(self), "path": Path(self.path).name}, files], sort_keys=True)

    def _files(self) -> list[Path]:
        path = Path(self.path)
        if path.is_dir():
            return sorted(file for file in path.rglob("*") if file.suffix in (*_SUFFIXES, ".arrow"))
        return [path] if path.is_file() else []

    def is_divisible(self) -> bool:
        """Whether one can read a part of it without parsing all."""
        return self._is_saved() or not any(file.suffix == ".json" for file in self._files())

    def size(self) -> int:
        """How large it is, in bytes."""
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
                raise DataError(f"{self.path}: no split {self.split!r}, there are {', '.join(sorted(dataset))}")
            dataset = dataset[self.split]
        if isinstance(dataset, datasets.IterableDataset):
            rows: Iterator[tuple[int, Any]] = _dealt(islice(enumerate(dataset, 1), self.limit), start, step, block)
        else:
            end = len(dataset) if self.limit is None else min(self.limit, len(dataset))
            numbers = range(start, end, step)
            parts = [numbers]
            if block > 1:  # neighbours are read together
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
            f"{source.path}: no such file or folder here, and the hub cannot give a data set of that name: {error}"
        ) from error


def _dealt(rows: Iterator[Any], start: int, step: int, block: int) -> Iterator[Any]:
    """Every ``step``-th block of rows, from block ``start`` on."""
    taken = cycle([*repeat(True, block), *repeat(False, block * (step - 1))])
    return compress(rows, chain(repeat(False, start * block), taken))


def weights_of(sources: Sequence[Source]) -> list[float] | None:
    """The sources' weights, or None if they have none.

    Raises:
        DataError: If only some have one, or one is not positive.
    """
    given = [source.weight for source in sources if source.weight is not None]
    if given and len(given) < len(sources):
        raise DataError("`data.train`: give every source a `weight`, or none")
    if any(weight <= 0 for weight in given):
        raise DataError("`data.train`: a `weight` is more than 0; leave out a source that is not wanted")
    return given or None


def _file_rows(file: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Each row's place, and the function that parses it."""
    if file.suffix == ".jsonl":
        # Bytes that are not UTF-8 become what no text may hold: their row is refused, not changed in silence.
        with file.open(encoding="utf-8", errors="surrogateescape") as stream:
            for number, line in enumerate(_lines(stream), 1):
                if not line.isspace():
                    yield f"{file}:{number}", partial(_parse_line, line)
    elif file.suffix == ".json":
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}: not JSON ({error}); a file with one object a line is called .jsonl") from error
        if not isinstance(rows, list):
            raise DataError(f"{file}: a list of rows is needed, this is a {type(rows).__name__}")
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
            raise DataError(f"{file}: Parquet cannot be read behind row {number:,}: {error}") from error


def _lines(stream: TextIO) -> Iterator[str]:
    """The lines; of one that is too long, only the beginning."""
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
    """The value without what is null in its objects.

    A column of objects gives each of them the keys of all: an argument that another row's call has is null here, not
    missing, and nobody can tell the two apart.
    """
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def default_id(place: str) -> str:
    """The id of a row that has none of its own."""
    path, _, number = place.rpartition(":")
    return f"{Path(path).stem}_{number}"


def brief(text: str, limit: int = 300) -> str:
    """A text for messages: short, and such that every file and terminal takes it."""
    text = text if len(text) <= limit else text[:limit] + "…"
    return text.encode(errors="backslashreplace").decode()
