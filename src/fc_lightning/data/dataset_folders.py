"""Folders of datasets: which of their files belong to a split, by name, README or LLaMA-Factory's description."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fc_lightning.data.files import SUFFIXES, DataError, has_rows, suffix_of

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SPLIT_NAME = re.compile(rf"(?:^|[-_. /0-9])({'|'.join(_SPLITS)})(?=$|[-_. /0-9])", re.IGNORECASE)
_INFO = "dataset_info.json"
# LLaMA-Factory's names of columns, and those that its rows have without a description.
_COLUMNS = {"messages": "conversations", "prompt": "instruction", "query": "input", "response": "output"}
_ROLE_TAGS = {
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}

Transform = Callable[[dict[str, Any]], dict[str, Any]]


class FolderFiles(NamedTuple):
    """The files of a split."""

    files: list[Path]  # the files, in order
    transform: Transform | None = None  # renames what is named differently in the rows; None if nothing is


def files_of(folder: Path, split: str, name: str | None) -> FolderFiles:
    """The files of a folder that belong to a split.

    A README with ``configs`` and LLaMA-Factory's ``dataset_info.json`` name them; otherwise their names do (``train``,
    ``validation``, ``test`` and their short forms), and files without such a name belong to ``train``.

    Raises:
        DataError: If there is no such split or configuration, or a description is broken.
    """
    info = _llama_factory(folder)
    if info is not None:
        return _described_files(folder, info, name)
    files = list(_data_files(folder))
    by_split = _readme_files(folder, files, name)
    if by_split is None:
        by_split = {}
        for file in files:
            by_split.setdefault(split_of(file.relative_to(folder)), []).append(file)
        # A JSON file may have the splits as keys.
        may_have_it = split in ("train", *by_split) or all(suffix_of(file) == ".json" for file in files)
        if len(by_split) < 2 and may_have_it:
            return FolderFiles(files)
    if split not in by_split:
        raise DataError(f"{folder}: no split {split!r}; available: {', '.join(sorted(by_split))}")
    return FolderFiles(by_split[split])


def split_of(path: Path) -> str:
    """The split that a file's name, or the nearest folder's, tells; ``train`` without one."""
    for part in reversed(path.parts):
        found = _SPLIT_NAME.search(part)
        if found:
            return _SPLITS[found[1].lower()]
    return "train"


def _data_files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if any(part.startswith(".") or part == "__MACOSX" for part in parts) or not has_rows(file):
            continue
        if file.is_symlink() and not file.exists():
            raise DataError(f"{file}: broken link")
        if file.is_file():
            yield file


def _readme_files(folder: Path, files: list[Path], name: str | None) -> dict[str, list[Path]] | None:
    """The files of each split by the README's configuration; None if it has none."""
    readme = folder / "README.md"
    if not readme.is_file():
        return None
    front = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        content = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError as error:
        raise DataError(f"{readme}: its front matter is not valid YAML: {str(error).splitlines()[0]}") from error
    configs = content.get("configs") if isinstance(content, dict) else None
    configs = [one for one in configs if isinstance(one, dict) and one.get("data_files")] if configs else []
    if not configs:
        return None
    names = [str(one.get("config_name", "default")) for one in configs]
    chosen = [one for one in configs if one.get("config_name", "default") == (name or "default")]
    chosen = chosen or [one for one in configs if name is None and (one.get("default") or len(configs) == 1)]
    if not chosen:
        raise DataError(f"{folder}: set `name` to one of its configurations: {', '.join(names)}")
    by_split: dict[str, list[Path]] = {}
    for split, pattern in _patterns(chosen[0]["data_files"]):
        matching = {path.resolve() for path in folder.glob(pattern)}
        by_split.setdefault(split, []).extend(file for file in files if file.resolve() in matching)
    return by_split


def _patterns(data_files: Any) -> Iterator[tuple[str, str]]:
    """Each split's patterns of files, in any of the notations of a README."""
    for item in data_files if isinstance(data_files, list) else [data_files]:
        if isinstance(item, dict) and "path" in item:
            paths = item["path"] if isinstance(item["path"], list) else [item["path"]]
            yield from ((str(item.get("split", "train")), str(path)) for path in paths)
        elif isinstance(item, dict):
            yield from ((str(split), str(path)) for split, path in item.items())
        else:
            yield "train", str(item)


def _llama_factory(folder: Path) -> dict[str, Any] | None:
    """LLaMA-Factory's description of a folder; None if there is none."""
    file = folder / _INFO
    if not file.is_file() or (folder / "state.json").exists():  # the latter is a saved dataset
        return None
    try:
        info = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise DataError(f"{file}: not JSON ({error})") from error
    entries = info.values() if isinstance(info, dict) else []
    keys = ("file_name", "hf_hub_url", "ms_hub_url", "script_url")
    return info if any(isinstance(one, dict) and any(key in one for key in keys) for one in entries) else None


def _described_files(folder: Path, info: dict[str, Any], name: str | None) -> FolderFiles:
    if name is None and len(info) > 1:
        raise DataError(f"{folder}: set `name` to one of its datasets: {', '.join(info)}")
    entry = info.get(name or next(iter(info)))
    if not isinstance(entry, dict):
        raise DataError(f"{folder / _INFO}: no dataset {name!r}; available: {', '.join(info)}")
    if "file_name" not in entry:
        hub = entry.get("hf_hub_url") or entry.get("ms_hub_url") or entry.get("script_url")
        raise DataError(
            f"{folder / _INFO}: this dataset is not in the folder; set `path: {hub}` to load it from the Hub"
        )
    path = folder / str(entry["file_name"])
    files = list(_data_files(path)) if path.is_dir() else [path] * path.is_file()
    if not files:
        raise DataError(f"{folder / _INFO}: {path}: no {', '.join(SUFFIXES)} file there")
    return FolderFiles(files, _renaming(entry))


def _renaming(entry: dict[str, Any]) -> Transform | None:
    """What LLaMA-Factory's columns and tags rename."""
    columns = {str(theirs): _COLUMNS.get(ours, ours) for ours, theirs in (entry.get("columns") or {}).items() if theirs}
    tags = {key: str(value) for key, value in (entry.get("tags") or {}).items() if value}
    roles = {tags[key]: role for key, role in _ROLE_TAGS.items() if key in tags}
    keys = {tags.get("role_tag", "from"): "from", tags.get("content_tag", "value"): "value"}
    if not columns and not tags:
        return None

    def rename_turn(turn: Any) -> Any:
        if not isinstance(turn, dict):
            return turn
        turn = {keys.get(key, key): value for key, value in turn.items()}
        return {**turn, "from": roles.get(turn["from"], turn["from"])} if isinstance(turn.get("from"), str) else turn

    def rename(row: dict[str, Any]) -> dict[str, Any]:
        row = {columns.get(key, key): value for key, value in row.items()}
        turns = row.get("conversations")
        return {**row, "conversations": [rename_turn(turn) for turn in turns]} if isinstance(turns, list) else row

    return rename
