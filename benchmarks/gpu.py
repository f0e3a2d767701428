"""On one GPU: Gemma 2 2B shapes with random weights, packed rows, against TRL. Nothing is downloaded.

    pip install -c constraints.txt -e ".[benchmarks]"
    python benchmarks/gpu.py

Rows of 2,048, 4,096 and 8,192 tokens, of conversations whose lengths are drawn as those of real function-calling rows
are spread (log-normal, median 540 tokens), a tenth, a third or all of their tokens supervised. Three contenders, each
in a process of its own: this project; TRL with its defaults, unpacked; TRL tuned: packed, without gradient
checkpointing, with flash attention where that is installed and flex attention otherwise. Utilisation is the operations
that the training needs (`fc_lightning.models.flops.training_flops`) over those of a large bf16 matrix product measured
in the same process.

`--tiny` runs it all on a CPU with a small model, to see that it works.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config

ROOT = Path(__file__).parents[1]
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONTENDERS = ("fc-lightning", "TRL as it comes", "TRL tuned")
WARM, STEPS = 3, 10


def lora() -> LoraConfig:
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=PROJECTIONS, task_type="CAUSAL_LM")


def documents(length: int, share: float, vocabulary: int, rows: int) -> list[dict[str, Any]]:
    """Random conversations that fill about so many rows, none longer than a row."""
    generator = random.Random(0)
    made, tokens = [], 0
    while tokens < rows * length:
        size = min(length, max(64, round(generator.lognormvariate(6.29, 0.6))))
        ids = [generator.randrange(10, vocabulary) for _ in range(size)]
        start = size - max(1, round(share * size))
        made.append({"id": str(len(made)), "input_ids": ids, "supervised": [start, size]})
        tokens += size
    return made


def labelled(document: dict[str, Any]) -> dict[str, list[int]]:
    start, end = document["supervised"]
    ids = document["input_ids"]
    return {"input_ids": ids, "labels": [-100] * start + ids[start:end]}


EvaluatedRun = tuple[float, int]


class Meter:
    """Seconds and peak memory of the steps after the first few."""

    def __init__(self, device: str):
        self.device, self.steps, self.started, self.seconds = device, 0, 0.0, 0.0

    def step(self) -> None:
        self.steps += 1
        if self.steps == WARM:
            self.synchronize()
            self.started = time.perf_counter()
        elif self.steps == WARM + STEPS:
            self.synchronize()
            self.seconds = time.perf_counter() - self.started

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def ours(folder: str, packs: list[list[dict[str, Any]]], length: int, device: str, tiny: bool) -> float:
    """Seconds of the measured steps."""
    from lightning import Callback, Trainer

    from fc_lightning.data.collator import PackingCollator
    from fc_lightning.training.module import FunctionCallingModule

    meter = Meter(device)

    class Clock(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            meter.step()

    module = FunctionCallingModule(folder, peft=lora(), special_tokens=[], compile=not tiny)
    trainer = Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, precision="bf16-mixed", max_steps=WARM + STEPS,
        gradient_clip_val=1.0, logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[Clock()],
        enable_model_summary=False,
    )  # fmt: skip
    collate = PackingCollator(0, pad_to=length)
    trainer.fit(module, DataLoader(packs, batch_size=1, collate_fn=collate, num_workers=0 if tiny else 2))
    return meter.seconds


def trl(folder: str, rows: list[dict[str, Any]], length: int, device: str, tuned: bool, tiny: bool) -> EvaluatedRun:
    """Seconds and tokens of the measured steps."""
    import datasets
    from transformers import TrainerCallback
    from transformers.utils import is_flash_attn_2_available
    from trl import SFTConfig, SFTTrainer

    meter = Meter(device)

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.step()

    attention = {}
    if tuned and not tiny:
        attention = {"attn_implementation": "flash_attention_2" if is_flash_attn_2_available() else "flex_attention"}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **attention)
    settings = {"gradient_checkpointing": False, "packing": True} if tuned else {}
    with tempfile.TemporaryDirectory() as output:
        trainer = SFTTrainer(
            model,
            SFTConfig(
                output,
                max_steps=WARM + STEPS,
                per_device_train_batch_size=1,
                gradient_accumulation_steps=1,
                max_length=length,
                bf16=True,
                use_cpu=device == "cpu",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                train_sampling_strategy="sequential",
                **settings,
            ),
            train_dataset=datasets.Dataset.from_list([labelled(row) for row in rows]),
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=lora(),
            callbacks=[Clock()],
        )
        trainer.train()
    used = [len(row["input_ids"]) for row in list(trainer.train_dataset)[WARM : WARM + STEPS]]
    return meter.seconds, sum(used)


def matmul_flops(device: str) -> float:
    """Operations a second of a large product in bf16."""
    size = 8192 if device == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    meter = Meter(device)
    for _ in range(WARM + STEPS):
        a @ b
        meter.step()
    return 2 * size**3 * STEPS / meter.seconds


def contend(args: argparse.Namespace, folder: str) -> list[dict[str, Any]]:
    """All settings of one contender."""
    from fc_lightning.data.collator import PackingCollator
    from fc_lightning.data.packing import plan_packs
    from fc_lightning.models.flops import training_flops

    device = "cpu" if args.tiny else "cuda"
    peak = matmul_flops(device)
    shapes = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).requires_grad_(False)
    vocabulary, results = shapes.config.vocab_size, []
    for length in (256,) if args.tiny else (2048, 4096, 8192):
        for share in (0.1, 1.0) if args.tiny else (0.1, 0.3, 1.0):
            made = documents(length, share, vocabulary, WARM + STEPS + 4)
            plan = plan_packs([len(row["input_ids"]) for row in made], length)
            packs = [[made[number] for number in pack] for pack in plan]
            if device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            result = {"contender": args.contender, "length": length, "supervised": share}
            try:
                if args.contender == "fc-lightning":
                    seconds = ours(folder, packs, length, device, args.tiny)
                    tokens = sum(len(row["input_ids"]) for pack in packs[WARM : WARM + STEPS] for row in pack)
                else:
                    tuned = args.contender == "TRL tuned"
                    seconds, tokens = trl(folder, made, length, device, tuned, args.tiny)
            except torch.OutOfMemoryError:
                results.append({**result, "failed": "out of memory"})
                continue
            flops = [training_flops(shapes, PackingCollator(0)([pack])) for pack in packs[WARM : WARM + STEPS]]
            packed = sum(len(row["input_ids"]) for pack in packs[WARM : WARM + STEPS] for row in pack)
            memory = torch.cuda.max_memory_allocated() if device == "cuda" else 0
            results.append(
                {
                    **result,
                    "tokens_per_second": tokens / seconds,
                    "utilisation": sum(flops) / packed * tokens / seconds / peak,
                    "peak_memory_gb": memory / 1e9,
                    "matmul_tflops": peak / 1e12,
                }
            )
            print(results[-1], file=sys.stderr, flush=True)
    return results


def main() -> None:
    """Make the random model, run the contenders, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU")
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "gpu.json"))
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        print(json.dumps(contend(args, args.folder)))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        tiny = ROOT / "tests" / "models" / "tiny_gemma2"
        config = Gemma2Config.from_pretrained(tiny) if args.tiny else Gemma2Config()  # whose defaults are the 2B's
        with torch.device("cpu" if args.tiny else "cuda"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
        del model
        AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
        for contender in CONTENDERS:
            command = [sys.executable, __file__, "--contender", contender, "--folder", folder]
            done = subprocess.run(command + ["--tiny"] * args.tiny, stdout=subprocess.PIPE, text=True, check=True)
            results += json.loads(done.stdout.splitlines()[-1])
    device = "CPU" if args.tiny else torch.cuda.get_device_name()
    Path(args.output).write_text(json.dumps({"device": device, "torch": torch.__version__, "runs": results}, indent=1))
    print(f"{device}\n{'contender':18} {'length':>6} {'share':>5} {'tokens/s':>9} {'MFU':>6} {'GB':>6}")
    for run in results:
        tail = run.get("failed") or (
            f"{run['tokens_per_second']:9.0f} {run['utilisation']:6.1%} {run['peak_memory_gb']:6.1f}"
        )
        print(f"{run['contender']:18} {run['length']:6} {run['supervised']:5} {tail}")


if __name__ == "__main__":
    main()
