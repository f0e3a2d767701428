"""Two processes measure and train as one does."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent.parent


def fit(folder: Path, devices: int, validation: int, *extra: str) -> tuple[dict[str, float], list[dict]]:
    """Metrics and predictions of a run of the tiny recipe in a process of its own."""
    command = [
        *(sys.executable, "main.py", "fit", "--config", "configs/debug/tiny.yaml"),
        f"--trainer.logger.init_args.save_dir={folder}",
        f"--trainer.devices={devices}",
        f"--trainer.accumulate_grad_batches={2 // devices}",
        "--data.train=[{path: data/quickstart/train.jsonl, limit: 20}]",
        f"--data.validation=[{{path: data/quickstart/validation.jsonl, limit: {validation}}}]",
    ]
    command += extra or (["--trainer.strategy=ddp"] if devices > 1 else [])
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (run,) = folder.glob("*/version_0")
    rows = csv.DictReader((run / "metrics.csv").open())
    logged = {name: float(value) for row in rows for name, value in row.items() if value}
    return logged, [json.loads(line) for line in (run / "predictions.jsonl").open()]


@pytest.mark.parametrize(
    "validation", [3, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 2, 4, 5, 6, 7))], ids=str
)
def test_two_ranks_count_every_turn_once(tmp_path, validation):
    one_metrics, one_turns = fit(tmp_path / "one", 1, validation)
    two_metrics, two_turns = fit(tmp_path / "two", 2, validation)
    assert [(turn["id"], turn["turn"]) for turn in two_turns] == [(turn["id"], turn["turn"]) for turn in one_turns]
    assert len({(turn["id"], turn["turn"]) for turn in two_turns}) == len(two_turns)
    counted = {name for name in one_metrics if name.startswith("val/")} - {"val/loss", "val/seconds"}
    assert len(counted) > 8
    assert counted | {"val/loss", "val/seconds"} == {name for name in two_metrics if name.startswith("val/")}
    assert {name: two_metrics[name] for name in counted} == {name: one_metrics[name] for name in counted}
    # One process accumulates two micro-batches, two ranks have one each: the same step, the same loss.
    assert two_metrics["train/loss"] == pytest.approx(one_metrics["train/loss"], rel=1e-5)
    assert two_metrics["val/loss"] == pytest.approx(one_metrics["val/loss"], rel=1e-5)


@pytest.mark.slow
def test_two_ranks_that_share_the_weights_train_as_one_process(tmp_path):
    """FSDP2: the same losses, the same calls, the same adapter, though no rank ever holds more than its shards."""
    sharded = tmp_path / "fsdp2.yaml"
    text = (ROOT / "configs" / "trainer" / "fsdp2.yaml").read_text()
    sharded.write_text(text.replace(": 8", ": 2").replace(": gpu", ": cpu").replace("bf16-mixed", "32-true"))
    one_metrics, one_turns = fit(tmp_path / "one", 1, 3)
    # One rank has two batches of prompts, the other one.
    two_metrics, two_turns = fit(tmp_path / "two", 2, 3, f"--config={sharded}", "--data.generation_batch_size=1")
    assert [turn["text"] for turn in two_turns] == [turn["text"] for turn in one_turns]
    assert two_metrics.keys() == one_metrics.keys()
    timed = ("seconds", "per_second", "memory_gb", "padding")  # two ranks pad their batches each by itself
    same = [name for name in one_metrics if not name.endswith(timed)]
    assert {"train/loss", "val/loss", "val/exact_match"} <= set(same)
    assert {name: two_metrics[name] for name in same} == pytest.approx({n: one_metrics[n] for n in same}, rel=1e-5)
    one, two = (load_file(next(tmp_path.glob(f"{name}/**/adapter_model.safetensors"))) for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-7)
