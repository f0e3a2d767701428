"""Settings and callbacks of Lightning on two ranks: they train as one process does with twice the accumulation."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent


def command(folder: Path, accumulate: int, *extra: str) -> list[str]:
    return [
        *(sys.executable, "main.py", "fit", "--config", "configs/debug/tiny.yaml"),
        f"--trainer.logger.init_args.save_dir={folder}",
        f"--trainer.accumulate_grad_batches={accumulate}",
        "--data.train=[{path: data/quickstart/train.jsonl, limit: 8}]",
        "--data.validation=[{path: data/quickstart/validation.jsonl, limit: 2}]",
        *("--model.generation.max_new_tokens=2", "--data.packing=false", "--model.learning_rate=0.01"),
        *extra,
    ]


def last(folder: Path) -> dict:
    (checkpoint,) = folder.glob("*/version_0/checkpoints/last.ckpt")
    return torch.load(checkpoint, weights_only=True)


def assert_same_weights(one: dict, other: dict) -> None:
    assert one["global_step"] == other["global_step"] == 4
    for name, weight in one["state_dict"].items():
        torch.testing.assert_close(other["state_dict"][name], weight, atol=1e-5, rtol=1e-4, msg=name)


def run(folder: Path, accumulate: int, *extra: str) -> dict:
    result = subprocess.run(
        command(folder, accumulate, *extra), cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return last(folder)


def callbacks() -> str:
    paths = {
        "fc_lightning.callbacks.EMA": {"decay": 0.5},
        "lightning.pytorch.callbacks.EarlyStopping": {"monitor": "val/loss"},
        "lightning.pytorch.callbacks.DeviceStatsMonitor": {"cpu_stats": True},
        "lightning.pytorch.callbacks.OnExceptionCheckpoint": {"dirpath": "."},
        "lightning.pytorch.callbacks.Timer": {"duration": "00:01:00:00", "interval": "step"},
    }
    return json.dumps([{"class_path": path, "init_args": arguments} for path, arguments in paths.items()])


@pytest.mark.slow
def test_two_ranks_with_callbacks_and_an_average(tmp_path):
    added = f"--trainer.callbacks+={callbacks()}"
    flags = ("--trainer.sync_batchnorm=true", "--trainer.deterministic=true", "--trainer.profiler=simple")
    one = run(tmp_path / "one", 2, added)
    two = run(tmp_path / "two", 1, added, "--trainer.devices=2", "--trainer.strategy=ddp", *flags)
    assert_same_weights(one, two)
    assert two["ema"]["num_updates"] == 4
    for name, weight in one["ema"]["weights"].items():
        torch.testing.assert_close(two["ema"]["weights"][name], weight, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_two_nodes(tmp_path):
    """One command per node, as a scheduler starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    nodes = [
        subprocess.Popen(
            command(tmp_path / "two", 1, "--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp"),
            cwd=ROOT,
            env={**shared, "NODE_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [node.communicate(timeout=400)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    assert_same_weights(run(tmp_path / "one", 2), last(tmp_path / "two"))
