"""Measures the memory of streamed training: a million generated rows, the tiny model, 200 steps.

    python benchmarks/streaming_memory.py --rows 1000000 --steps 200

Prints the peak resident memory of the training process and of its children in MB. The rows are written to a temporary
folder (about 700 MB for a million).
"""

import argparse
import json
import random
import resource
import tempfile
import time
from pathlib import Path

from fc_lightning.cli.lightning_cli import main

CITIES = ["Paris", "Oslo", "Lima", "Cairo", "Delhi", "Quito", "Accra", "Kyoto", "Turin", "Perth"]
TOOL = {
    "name": "get_weather",
    "description": "The weather of a city on a day.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "day": {"type": "integer"}},
        "required": ["city", "day"],
    },
}


def write_rows(file: Path, count: int) -> None:
    """Write distinct Hermes rows."""
    rng = random.Random(0)
    tools = json.dumps([{"type": "function", "function": TOOL}])
    with file.open("w") as stream:
        for number in range(count):
            city, day = rng.choice(CITIES), rng.randrange(1, 32)
            call = json.dumps({"name": "get_weather", "arguments": {"city": city, "day": day}})
            turns = [
                {"from": "human", "value": f"Question {number}: how is the weather of {city} on day {day}?"},
                {"from": "gpt", "value": f"<tool_call>\n{call}\n</tool_call>"},
            ]
            stream.write(json.dumps({"id": f"row{number}", "conversations": turns, "tools": tools}) + "\n")


def peak(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1000


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder) / "rows.jsonl", arguments.rows)
        before, start = peak(resource.RUSAGE_SELF), time.perf_counter()
        main(
            [
                *("fit", "--config", "configs/debug/tiny.yaml"),
                *("--data.train", json.dumps([{"path": f"{folder}/rows.jsonl"}])),
                *("--data.streaming=true", "--data.validation=null", f"--data.num_workers={arguments.workers}"),
                *("--trainer.max_epochs=-1", f"--trainer.max_steps={arguments.steps}", "--trainer.callbacks=null"),
                f"--trainer.logger.init_args.save_dir={folder}",
            ]
        )
        seconds = time.perf_counter() - start
    print(f"{arguments.rows:,} rows, {arguments.steps} steps in {seconds:.0f} s")
    print(f"peak memory: {before:.0f} MB before training, {peak(resource.RUSAGE_SELF):.0f} MB after it", end="")
    print(f"; largest child {peak(resource.RUSAGE_CHILDREN):.0f} MB")
