"""The quality sweep: one command trains variants, evaluates each, and continues where it stopped."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def sweep(tmp_path: Path, *arguments: str) -> str:
    command = [sys.executable, "benchmarks/quality.py", f"--results={tmp_path / 'quality.jsonl'}", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.nightly
def test_a_sweep_writes_a_line_per_run_and_a_table(tmp_path):
    runs = ["--config=configs/debug/tiny.yaml", f"--runs={tmp_path / 'runs'}", "--variants", "mask_names"]
    runs += [
        "--set=--trainer.max_steps=3",
        "--set=--trainer.log_every_n_steps=2",  # not the last step
        "--set=--trainer.limit_val_batches=1",
        "--set=--model.generation.max_new_tokens=4",
    ]
    sweep(tmp_path, *runs)
    sweep(tmp_path, *runs)  # it is there already
    (line,) = (tmp_path / "quality.jsonl").read_text().splitlines()
    run = json.loads(line)
    assert (run["variant"], run["seed"], run["steps"]) == ("mask_names", 0, 3)
    assert {"val/exact_match", "val/exact_match/masked", "val/pass_at_1", "val/pass_at_8"} <= run["metrics"].keys()
    plain = {**run, "variant": "plain", "metrics": {**run["metrics"], "val/exact_match": 0.25}, "turns": 100}
    better = {**plain, "variant": "all", "metrics": {**run["metrics"], "val/exact_match": 0.5}}
    (tmp_path / "quality.jsonl").write_text(f"{json.dumps(plain)}\n{json.dumps(better)}\n")
    table = sweep(tmp_path, "--table")
    assert "| plain | 1 | 0.250 ± 0.043 |" in table
    assert "| all | 1 | 0.500 ± 0.050 |" in table
    assert table.splitlines()[3].endswith("| +0.250 |")
