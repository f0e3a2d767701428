"""The Berkeley Function Calling Leaderboard as a source: ``bfcl:CATEGORY``, from the data of the package bfcl-eval.

Only single-turn categories whose calls are judged by Python's rules, and those in which no function fits. The package
is not imported, because it requires old versions of other packages.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fc_lightning.data.files import DataError
from fc_lightning.utils.atomic_files import write_text
from fc_lightning.utils.pretrained import cache_dir

PREFIX = "bfcl:"
NON_LIVE = ("simple_python", "multiple", "parallel", "parallel_multiple")
LIVE = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
IRRELEVANCE = ("irrelevance", "live_irrelevance")
CATEGORIES = (*NON_LIVE, *LIVE, *IRRELEVANCE)


def bfcl_file(path: str) -> Path:
    """A file of rows for ``bfcl:CATEGORY``, or for all categories with ``bfcl:all``.

    Raises:
        DataError: If there is no such category, or bfcl-eval is not installed.
    """
    name = path.removeprefix(PREFIX)
    if name != "all" and name not in CATEGORIES:
        raise DataError(f"{path}: unknown category; available: all, {', '.join(CATEGORIES)}")
    spec = importlib.util.find_spec("bfcl_eval")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"{path}: bfcl-eval is not installed: pip install --no-deps bfcl-eval")
    data = Path(spec.submodule_search_locations[0]) / "data"
    categories = CATEGORIES if name == "all" else (name,)
    rows = (row for category in categories for row in _rows(data, category))
    file = cache_dir() / "bfcl" / f"{name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        write_text(file, text)
    return file


def _rows(data: Path, category: str) -> Iterator[dict[str, Any]]:
    answers: dict[str, Any] = {}
    if category not in IRRELEVANCE:
        for line in _lines(data / "possible_answer", category):
            answers[line["id"]] = line["ground_truth"]
    for line in _lines(data, category):
        row = {"id": line["id"], "category": category}
        if category in IRRELEVANCE:
            # A prompt is made for each model turn; this one stands for any turn without a call.
            answer = {"role": "assistant", "content": "None of the functions fits the question."}
            yield {**row, "messages": [*line["question"][0], answer], "tools": line["function"]}
        else:
            question = {"question": line["question"], "function": line["function"]}
            yield {**row, **question, "ground_truth": answers[line["id"]]}


def _lines(folder: Path, category: str) -> list[dict[str, Any]]:
    (file,) = folder.glob(f"BFCL_v[0-9]_{category}.json")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
