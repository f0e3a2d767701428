"""Runs random combinations of valid settings on the tiny model: each trains two steps, or is rejected in one line.

python scripts/fuzz_configurations.py --count 300

A combination that ends in any other way is printed with its seed; ``--seed N --count 1`` runs it again. One in ten runs
on two ranks.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TRAIN, VALIDATION = "data/quickstart/train.jsonl", "data/quickstart/validation.jsonl"
LORA = {"r": 2, "lora_alpha": 4}
OURS = ("EMA", "EvaluationReport", "LastCheckpoint", "PredictionWriter", "SampleTable", "SaveAdapter", "Throughput")


def lora(**more: Any) -> dict[str, Any]:
    """A LoRA, with more settings."""
    return {"class_path": "peft.LoraConfig", "init_args": {**LORA, "target_modules": "all-linear", **more}}


def callback(name: str, **settings: Any) -> dict[str, Any]:
    """A callback of Lightning or of this project."""
    package = "fc_lightning.callbacks" if name in OURS else "lightning.pytorch.callbacks"
    return {"class_path": f"{package}.{name}", "init_args": settings}


# For each key some valid values. A combination takes a random one, or leaves the key at its default.
CHOICES: dict[str, list[Any]] = {
    "data.packing": [True, False],
    "data.batch_size": [1, 2, 3],
    "data.max_length": [300, 512, 2048],
    "data.too_long": ["drop", "cut"],
    "data.thoughts": ["none", "template"],
    "data.thoughts_share": [0.5],
    "data.render": ["verbatim"],
    "data.validation": [None, 0.3, [{"path": VALIDATION, "limit": 2}]],
    "data.validation_prompts": [1],
    "data.num_workers": [1],
    "data.seed": [3, None],
    "data.streaming": [True],
    "data.generation_batch_size": [1],
    "data.augmentation": [{"shuffle_tools": 1.0, "distractors": 0.5}, {"drop_tool": 0.3, "mask_names": 1.0}],
    "data.preparation_processes": [2],
    "data.train": [[{"path": TRAIN, "limit": 8, "weight": 1.0}, {"path": VALIDATION, "limit": 4, "weight": 2.0}]],
    "model.peft": [
        None,
        lora(use_dora=True),
        lora(use_rslora=True),
        lora(target_modules=["q_proj", "lm_head"]),
        lora(target_modules=["embed_tokens", "q_proj"]),
        lora(modules_to_save=["lm_head"]),
        lora(bias="all", lora_dropout=0.1),
        {"class_path": "peft.IA3Config", "init_args": {"target_modules": ["k_proj"], "feedforward_modules": []}},
        {"class_path": "peft.LoHaConfig", "init_args": {"r": 2, "target_modules": ["q_proj"]}},
        {"class_path": "peft.VeraConfig", "init_args": {"r": 2, "target_modules": ["q_proj"]}},
        {"class_path": "peft.PromptTuningConfig", "init_args": {"num_virtual_tokens": 2}},
    ],
    "model.special_tokens": [[], ["<tool_call>", "</tool_call>"]],
    "model.supervise": ["all"],
    "model.attn_implementation": ["eager"],
    "model.dtype": ["float32", "bfloat16"],
    "model.gradient_checkpointing": [True],
    "model.head_chunk": [1, 7],
    "model.token_weights": [{"argument_value": 3.0, "tag": 0.0}],
    "model.lora_plus_ratio": [16.0],
    "model.optimizer": ["SGD", {"class_path": "torch.optim.Adam", "init_args": {"betas": [0.8, 0.9]}}],
    "model.lr_scheduler": [{"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1}}],
    "model.free_running": [True],
    "model.generation": [
        {"max_new_tokens": 1},
        {"max_new_tokens": 4, "do_sample": True, "num_return_sequences": 2},
        {"max_new_tokens": 4, "num_beams": 2},
    ],
    "model.constrained": [True],
    "model.learning_rate": [0.0, 1.0],
    "model.weight_decay": [0.1],
    "model.warmup": [0.0, 1.0],
    "model.schedule": ["linear", "constant_with_warmup"],
    "model.non_finite": ["skip"],
    "trainer.accumulate_grad_batches": [1, 3],
    "trainer.precision": ["32-true", "bf16-mixed"],
    "trainer.gradient_clip_val": [0.5],
    "trainer.val_check_interval": [1, 0.5],
    "trainer.num_sanity_val_steps": [1, -1],
    "trainer.log_every_n_steps": [1, 50],
    "trainer.limit_val_batches": [0, 1, 0.5],
    "trainer.limit_train_batches": [2, 0.5],
    "trainer.fast_dev_run": [True],
    "trainer.logger": [False],
    "trainer.enable_checkpointing": [False],
    "trainer.deterministic": [True],
    "trainer.detect_anomaly": [True],
    "trainer.profiler": ["simple"],
    "trainer.max_time": ["00:00:01:00"],
    "trainer.callbacks": [
        [],
        [callback("Throughput"), callback("SaveAdapter"), callback("ModelCheckpoint", every_n_train_steps=1)],
        [callback("EarlyStopping", monitor="val/exact_match", mode="max")],
        [callback("ModelCheckpoint", monitor="val/loss", save_top_k=2), callback("LearningRateMonitor")],
        [callback("EMA"), callback("PredictionWriter"), callback("EvaluationReport"), callback("SaveAdapter")],
        [callback("LastCheckpoint", every_n_train_steps=1), callback("SampleTable")],
        [callback("GradientAccumulationScheduler", scheduling={0: 2})],
        [callback("RichProgressBar"), callback("DeviceStatsMonitor"), callback("Timer")],
    ],
}


def combination(seed: int) -> dict[str, Any]:
    """The configuration of a seed: about a fifth of the keys is set."""
    random_ = random.Random(seed)
    config: dict[str, Any] = {
        "data": {
            "train": [{"path": TRAIN, "limit": 8}],
            "validation": [{"path": VALIDATION, "limit": 2}],
        },
        "model": {"generation": {"max_new_tokens": 4}},
        "trainer": {"max_steps": 2},
    }
    for key, values in CHOICES.items():
        if random_.random() < 0.2:
            group, name = key.split(".")
            config[group][name] = random_.choice(values)
    if random_.random() < 0.1:
        config["trainer"] |= {"devices": 2, "strategy": "ddp"}
    return config


def outcome(config: dict[str, Any], folder: Path) -> tuple[str, str]:
    """``trained``, ``refused`` and its line, or ``failed`` and what happened."""
    file = folder / "overlay.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    arguments = ["fit", "--config", "configs/debug/tiny.yaml", "--config", str(file)]
    if config["trainer"].get("logger") is not False:
        arguments.append(f"--trainer.logger.save_dir={folder}")
    arguments.append(f"--trainer.default_root_dir={folder}")
    run = in_a_process if config["trainer"].get("devices") == 2 else in_this_process
    code, output = run(arguments)
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    if code == 0:
        return "trained", ""
    if code in (1, 2) and len(lines) == 1 and "Traceback" not in output:
        return "refused", lines[0]
    return "failed", output


def in_this_process(arguments: list[str]) -> tuple[int, str]:
    """Exit code and output; importing everything takes longer than a run."""
    from fc_lightning.cli.main import main

    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            main(arguments)
        except SystemExit as exit_:
            return int(exit_.code or 0), output.getvalue()
        except BaseException:
            return 1, output.getvalue() + traceback.format_exc()
    return 0, output.getvalue()


def in_a_process(arguments: list[str]) -> tuple[int, str]:
    """The same for several ranks."""
    done = subprocess.run(
        [sys.executable, "main.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    return done.returncode, done.stdout + done.stderr


def main() -> None:
    """Run the combinations; exit with code 1 if one has failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="of the first combination, by default the time"
    )
    parser.add_argument("--verbose", action="store_true", help="print each combination")
    arguments = parser.parse_args()
    sys.argv[1:] = []
    print(f"seeds {arguments.seed} to {arguments.seed + arguments.count - 1}", flush=True)
    counts: Counter[str] = Counter()
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        config = combination(seed)
        with tempfile.TemporaryDirectory() as folder:
            result, details = outcome(config, Path(folder))
        counts[result] += 1
        if result == "failed":
            print(f"seed {seed}: {json.dumps(config)}\n{details[-3000:]}", flush=True)
        elif arguments.verbose:
            print(f"seed {seed}: {result} {details}", flush=True)
    print(", ".join(f"{count} {result}" for result, count in counts.items()))
    sys.exit(counts["failed"] > 0)


if __name__ == "__main__":
    main()
