"""Two processes measure and train as one does."""

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent.parent


def fit(
    folder: Path, devices: int, validation: int, *extra: str, launcher: tuple[str, ...] = ()
) -> tuple[dict[str, float], list[dict]]:
    """Metrics and predictions of a run of the tiny recipe in a process of its own."""
    command = [
        *(launcher or [sys.executable]),
        *("main.py", "fit", "--config", "configs/debug/tiny.yaml"),
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


def sharded(folder: Path) -> str:
    """The option that has two ranks on the CPU share the weights."""
    config = folder / "fsdp2.yaml"
    text = (ROOT / "configs" / "trainer" / "fsdp2.yaml").read_text()
    config.write_text(text.replace(": 8", ": 2").replace(": gpu", ": cpu").replace("bf16-mixed", "32-true"))
    return f"--config={config}"


@pytest.mark.slow
def test_two_ranks_that_share_the_weights_train_as_one_process(tmp_path):
    """FSDP2: the same losses, the same calls, the same adapter, though no rank ever holds more than its shards."""
    one_metrics, one_turns = fit(tmp_path / "one", 1, 3)
    # One rank has two batches of prompts, the other one.
    two_metrics, two_turns = fit(tmp_path / "two", 2, 3, sharded(tmp_path), "--data.generation_batch_size=1")
    assert [turn["text"] for turn in two_turns] == [turn["text"] for turn in one_turns]
    assert two_metrics.keys() == one_metrics.keys()
    timed = ("seconds", "per_second", "memory_gb", "padding")  # two ranks pad their batches each by itself
    same = [name for name in one_metrics if not name.endswith(timed)]
    assert {"train/loss", "val/loss", "val/exact_match"} <= set(same)
    assert {name: two_metrics[name] for name in same} == pytest.approx({n: one_metrics[n] for n in same}, rel=1e-5)
    one, two = (load_file(next(tmp_path.glob(f"{name}/**/adapter_model.safetensors"))) for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-7)


@pytest.mark.nightly
def test_ranks_that_share_the_weights_resume(tmp_path):
    constant = ("--model.schedule=constant_with_warmup", "--model.warmup=0", "--data.packing=false")
    settings = (sharded(tmp_path), *constant, "--model.generation.max_new_tokens=2", "--trainer.val_check_interval=2")
    fit(tmp_path / "whole", 2, 1, *settings, "--trainer.max_steps=4")
    fit(tmp_path / "part", 2, 1, *settings, "--trainer.max_steps=2")
    (saved,) = tmp_path.glob("part/*/version_0/checkpoints/last.ckpt")
    fit(tmp_path / "resumed", 2, 1, *settings, "--trainer.max_steps=4", f"--ckpt_path={saved}")
    whole, part, resumed = (
        load_file(next(tmp_path.glob(f"{name}/*/version_0/adapter/adapter_model.safetensors")))
        for name in ("whole", "part", "resumed")
    )
    assert any(not torch.equal(part[name], weight) for name, weight in whole.items())
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def networks(*command: str) -> list[str]:
    return ["unshare", "--user", "--map-root-user", "--net", "--mount", *command]


@pytest.mark.nightly
def test_two_machines_train_as_one_process(tmp_path):
    """The command of the README with torchrun, run on two networks that are joined by a cable."""
    if not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("no unshare or ip")
    cable = networks("ip", "link", "add", "end0", "type", "veth", "peer", "name", "end1")
    if (probe := subprocess.run(cable, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"this machine allows no networks: {probe.stderr}")
    (documented,) = re.findall(r"^torchrun (.+?) \\$", (ROOT / "README.md").read_text(), re.MULTILINE)
    options = documented.replace("--nproc-per-node 8", "--nproc-per-node 1").replace("HOST", "node0")
    torchrun = (sys.executable, "-m", "torch.distributed.run", *shlex.split(options))
    launcher = networks("sh", "tests/helpers/two_networks.sh", *torchrun)
    machines = ("--trainer.devices=1", "--trainer.num_nodes=2", "--trainer.strategy=ddp")
    one_metrics, one_turns = fit(tmp_path / "one", 1, 3)
    two_metrics, two_turns = fit(tmp_path / "two", 2, 3, *machines, launcher=tuple(launcher))
    assert [turn["text"] for turn in two_turns] == [turn["text"] for turn in one_turns]
    assert two_metrics.keys() == one_metrics.keys()
    measured = {name for name in one_metrics if name.startswith("val/")} - {"val/seconds"} | {"train/loss"}
    assert len(measured) > 8
    assert {name: two_metrics[name] for name in measured} == pytest.approx(
        {name: one_metrics[name] for name in measured}, rel=1e-5
    )
