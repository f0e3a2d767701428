"""Files of rows: JSON, JSON Lines, CSV and Parquet, compressed or not, read row by row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import pyarrow as pa
import pyarrow.parquet as parquet

from fc_lightning.conversation.parsing import unambiguous_object
from fc_lightning.data.formats import RowError
from fc_lightning.utils.errors import UserError
from fc_lightning.utils.escaping import shorten

# Characters, about a million tokens; a longer row is not parsed.
MAX_ROW = 4_000_000
_JSON_LINES = (".jsonl", ".ndjson")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".json", *_JSON_LINES, ".parquet", *_DELIMITERS)
_COMPRESSION = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
# Files of a dataset that do not contain rows.
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "package.json")
# Keys under which an object has the rows of a file.
_ROW_KEYS = ("data", "rows", "examples", "instances", "records", "samples")
# Arguments keep their nulls until the schema of their tool is known.
_ARGUMENTS = ("arguments", "args", "input")
_ENCODINGS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}

Row = dict[str, Any] | RowError


class DataError(UserError):
    """The data cannot be used as configured. The message says where the problem is and what to do."""


def suffix_of(file: Path) -> str:
    """The suffix that says what a file holds, in lower case: ``.jsonl`` for ``rows.JSONL.gz``."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSION:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def has_rows(file: Path) -> bool:
    """Whether a file is one that rows are read from."""
    return suffix_of(file) in SUFFIXES and file.name not in _DESCRIPTIONS


def read_file(file: Path, split: str = "train") -> Iterator[tuple[str, Callable[[], Row]]]:
    """Yield each row's place (``file:row``), and a function that parses it.

    Raises:
        DataError: If the file cannot be read.
    """
    suffix = suffix_of(file)
    try:
        if suffix in _JSON_LINES:
            with _open_text(file) as stream:
                yield from _read_lines(stream, file)
        elif suffix == ".json":
            yield from _read_json(file, split)
        elif suffix in _DELIMITERS:
            with _open_text(file) as stream:
                yield from _read_table(stream, file, _DELIMITERS[suffix])
        else:
            yield from _read_parquet(file)
    except (OSError, EOFError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot read the file: {error}") from error


def count_rows(file: Path, split: str = "train") -> int:
    """The number of rows of a file; they are not parsed."""
    if suffix_of(file) == ".parquet":
        return int(parquet.read_metadata(file).num_rows)
    return sum(1 for _ in read_file(file, split))


def _open_text(file: Path) -> TextIO:
    """Open a file as text: decompressed, without a byte order mark.

    Bytes that are not UTF-8 become lone surrogates, which are rejected later: the row is not silently changed.
    """
    compression = _COMPRESSION.get(file.suffix.lower())
    raw: BinaryIO
    if compression is None:
        raw = file.open("rb")
    else:
        raw = io.BufferedReader(pa.input_stream(str(file), compression=compression))
    start = raw.peek(4)[:4]
    for mark, encoding in _ENCODINGS.items():
        if start.startswith(mark):
            raise DataError(f"{file}: encoded as {encoding}; convert it to UTF-8 (`iconv -f {encoding} -t UTF-8`)")
    if len(start) == 4 and b"\x00" in start:
        raise DataError(f"{file}: not UTF-8 text, perhaps UTF-16; convert it to UTF-8 (`iconv -f UTF-16 -t UTF-8`)")
    if start.startswith(b"\xef\xbb\xbf"):
        raw.read(3)
    return io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape")


def _read_lines(stream: TextIO, file: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    for number, line in enumerate(_lines(stream), 1):
        if not line.isspace():
            yield f"{file}:{number}", partial(_parse_line, line)


def _lines(stream: TextIO) -> Iterator[str]:
    """Yield the lines; only the beginning of a line that is too long."""
    while line := stream.readline(MAX_ROW + 1):
        rest = line
        while len(line) > MAX_ROW and rest and not rest.endswith("\n"):
            rest = stream.readline(MAX_ROW)
        yield line


def _read_json(file: Path, split: str) -> Iterator[tuple[str, Callable[[], Row]]]:
    with _open_text(file) as stream:
        text = stream.read()
    ambiguous: list[_Ambiguous] = []  # objects of the file
    try:
        content = json.loads(text, object_pairs_hook=partial(_keep_ambiguous, ambiguous))
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from _read_lines(io.StringIO(text), file)  # JSON Lines under another name
            return
        raise DataError(f"{file}: not JSON ({error})") from error
    for number, row in enumerate(_rows_of(content, split, file), 1):
        yield f"{file}:{number}", partial(_unambiguous, row) if ambiguous else partial(_checked, row)


def _rows_of(content: Any, split: str, file: Path) -> list[Any]:
    """The rows of a JSON file: its list, the list under a key for rows or under the split's name, or one row."""
    if isinstance(content, list):
        return content
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected a list of rows, got {type(content).__name__}")
    if isinstance(content, _Ambiguous) and any(isinstance(value, list) for value in content.values()):
        raise DataError(f"{file}: the object has the key {content.key!r:.40} twice")
    lists = {key: value for key, value in content.items() if isinstance(value, list)}
    for key in (split, *_ROW_KEYS):
        if key in lists:
            return lists[key]
    if {"train", "test", "validation"} & lists.keys():
        raise DataError(f"{file}: no split {split!r}; available: {', '.join(sorted(lists))}")
    return [content]


def _read_table(stream: TextIO, file: Path, delimiter: str) -> Iterator[tuple[str, Callable[[], Row]]]:
    csv.field_size_limit(MAX_ROW)
    rows = csv.DictReader(stream, delimiter=delimiter)
    try:
        for number, row in enumerate(rows, 1):
            yield f"{file}:{number}", partial(_table_row, row)
    except csv.Error as error:
        raise DataError(f"{file}: not a table after line {rows.line_num:,}: {error}") from error


def _table_row(row: dict[str | None, Any]) -> Row:
    if None in row or None in row.values():
        return RowError("the row does not have as many fields as the header")
    return {str(key): value for key, value in row.items() if value != ""}


def _read_parquet(file: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    number = 0
    try:
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=1024):
            for index in range(len(batch)):
                number += 1
                yield f"{file}:{number}", partial(_parse_record, batch, index)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: cannot read Parquet after row {number:,}: {error}") from error


class _Ambiguous(dict[str, Any]):
    """An object with a duplicate key."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        keys = [key for key, _ in pairs]
        self.key = next(key for key in keys if keys.count(key) > 1)


def _keep_ambiguous(found: list[_Ambiguous], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of a JSON file, whose rows are parsed together; those with duplicate keys are collected."""
    value = dict(pairs)
    if len(value) < len(pairs):
        found.append(value := _Ambiguous(pairs))
    return value


def _unambiguous(row: Any) -> Row:
    """A row of a JSON file, or the error that one of its objects has a duplicate key."""
    inner = [row]
    while inner:
        value = inner.pop()
        if isinstance(value, _Ambiguous):
            return RowError(f"not JSON (an object has the key {value.key!r:.40} twice)")
        inner += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return _checked(row)


_DECODER = json.JSONDecoder(object_pairs_hook=unambiguous_object)


def _parse_line(line: str) -> Row:
    if len(line) > MAX_ROW:
        return RowError(f"longer than {MAX_ROW:,} characters: {brief(line.strip(), 80)}")
    try:
        return _checked(_DECODER.decode(line))
    except RecursionError:
        return RowError("the row is nested too deeply")
    except ValueError as error:
        return RowError(f"not JSON ({error}): {brief(line.strip(), 80)}")


def _parse_record(batch: pa.RecordBatch, index: int) -> Row:
    record = batch.slice(index, 1)
    if record.nbytes > 4 * MAX_ROW:
        return RowError(f"longer than {4 * MAX_ROW:,} bytes")
    try:
        row = record.to_pylist(maps_as_pydicts="strict")[0]
    except (KeyError, pa.ArrowException) as error:
        return RowError(f"a map has a key twice: {error}")
    return table_row(row)


def table_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of an Arrow table without the nulls that the table filled in.

    A column of objects gives each of them the keys of all: a key that only another row has is null here.
    """
    return {key: _without_nulls(value, key in _ARGUMENTS) for key, value in row.items()}


def _without_nulls(value: Any, keep: bool) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_nulls(item, keep or key in _ARGUMENTS)
            for key, item in value.items()
            if keep or item is not None
        }
    return [_without_nulls(item, keep) for item in value] if isinstance(value, list) else value


def _checked(row: Any) -> Row:
    return row if isinstance(row, dict) else RowError(f"a row must be an object, not {type(row).__name__}")


def brief(text: str, limit: int = 300) -> str:
    """Shorten and escape a text for messages."""
    return shorten(text, limit).encode(errors="backslashreplace").decode()
