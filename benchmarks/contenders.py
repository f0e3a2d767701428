"""One training run of one contender in a process of its own, for `vs_trl.py`.

    python benchmarks/contenders.py SPEC.json RESULT.json

Both contenders read the rows in the order of the file, with the same LoRA, optimizer, learning rate and number of rows
per step. This project encodes the documents once, and TRL gets the same ids and labels.
"""

import csv
import json
import math
import resource
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.benchmark import Timer

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def run_ours(spec: dict[str, Any]) -> dict[str, Any]:
    """This project, through the command line."""
    from clock import Clock
    from fc_lightning.cli.lightning_cli import main

    with tempfile.TemporaryDirectory() as folder:
        recipe = {
            "seed_everything": 0,
            "model": {
                "base": spec["base"],
                "special_tokens": [],
                "peft": {
                    "class_path": "peft.LoraConfig",
                    "init_args": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": PROJECTIONS},
                },
                "learning_rate": spec["learning_rate"],
                "warmup": 0.0,
                "schedule": "constant_with_warmup",
            },
            "data": {
                "train": [{"path": spec["data"]}],
                "max_length": spec["max_length"],
                "packing": spec["packed"],
                "seed": None,
            },
            "trainer": {
                "accelerator": "cpu",
                "max_steps": spec["steps"],
                "accumulate_grad_batches": spec["accumulation"],
                "precision": "bf16-mixed",
                "gradient_clip_val": 1.0,
                "log_every_n_steps": 1,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "logger": {
                    "class_path": "lightning.pytorch.loggers.CSVLogger",
                    "init_args": {"save_dir": folder, "flush_logs_every_n_steps": 1},
                },
                "callbacks": [{"class_path": "clock.Clock"}],
            },
        }
        (Path(folder) / "recipe.yaml").write_text(json.dumps(recipe))
        main(["fit", "--config", f"{folder}/recipe.yaml"])
        (file,) = Path(folder).glob("**/metrics.csv")
        losses = [float(row["train/loss"]) for row in csv.DictReader(file.read_text().splitlines())]
    rows = sum(Clock.tokens) / (spec["steps"] * spec["accumulation"])
    return {
        "ends": Clock.ends,
        "tokens": Clock.tokens[:-1],
        "supervised": Clock.supervised[:-1],
        "flops": Clock.flops[:-1],
        "matmul_flops_per_second": matmul_rate(Clock.matrices, 32 * math.ceil(rows / 32)),
        "losses": losses,
    }


def matmul_rate(matrices: Counter[tuple[int, int]], rows: int) -> float:
    """Floating-point operations per second of the layers' frozen matrices alone, forward and backward, in bf16."""
    operations = seconds = 0.0
    for (out, width), count in matrices.items():
        weight, x, upstream = (
            torch.randn(shape, dtype=torch.bfloat16) for shape in ((out, width), (rows, width), (rows, out))
        )
        for product in (partial(F.linear, x, weight), partial(torch.matmul, upstream, weight)):
            timer = Timer("product()", globals={"product": product}, num_threads=torch.get_num_threads())
            seconds += count * timer.timeit(20).mean
            operations += count * 2 * rows * out * width
    return operations / seconds


def run_trl(spec: dict[str, Any]) -> dict[str, Any]:
    """TRL's SFTTrainer with its defaults, except for the settings that both must share."""
    import datasets
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from fc_lightning.utils.pretrained import resolve_base

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.ends = [time.perf_counter()]

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.ends.append(time.perf_counter())

    base = resolve_base(spec["base"])
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16),
            SFTConfig(
                output_dir=folder,
                max_steps=spec["steps"],
                per_device_train_batch_size=1,
                gradient_accumulation_steps=spec["accumulation"],
                learning_rate=spec["learning_rate"],
                lr_scheduler_type="constant",
                warmup_steps=0,
                max_grad_norm=1.0,
                max_length=spec["max_length"],
                packing=spec["packed"],
                gradient_checkpointing=spec["checkpointing"],
                bf16=True,
                use_cpu=True,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                train_sampling_strategy="sequential",
            ),
            train_dataset=datasets.Dataset.from_list(json.loads(Path(spec["documents"]).read_text())),
            processing_class=AutoTokenizer.from_pretrained(base),
            peft_config=LoraConfig(
                r=16, lora_alpha=32, lora_dropout=0.0, target_modules=PROJECTIONS, task_type="CAUSAL_LM"
            ),
            callbacks=[clock],
        )
        trainer.train()
    rows = [trainer.train_dataset[number] for number in range(spec["steps"] * spec["accumulation"])]
    tokens = [len(row["input_ids"]) for row in rows]
    supervised = [sum(label != -100 for label in row["labels"]) for row in rows]
    size = spec["accumulation"]
    return {
        "ends": clock.ends,
        "tokens": [sum(tokens[start : start + size]) for start in range(0, len(rows), size)],
        "supervised": [sum(supervised[start : start + size]) for start in range(0, len(rows), size)],
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    result = {"ours": run_ours, "trl": run_trl}[given["who"]](given)
    result["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    Path(sys.argv[2]).write_text(json.dumps(result))
