"""On one GPU: Gemma 2 2B with random weights, packed rows, compared with TRL. Nothing is downloaded.

    python benchmarks/gpu.py --output results.json

Needs torch, transformers, peft, lightning, datasets and jsonargparse, and for the comparison trl and liger-kernel; the
package itself need not be installed. Rows of 2,048 and 8,192 tokens hold conversations whose lengths are distributed
like those of real function-calling rows (log-normal, median 540 tokens); an eighth or all of their tokens are
supervised. Each contender runs in a process of its own:

- fc-lightning: the command line's module and trainer with their defaults on a GPU
- TRL as it comes: `SFTTrainer` with its defaults; the batch is halved while it runs out of memory
- TRL tuned: packed rows, no gradient checkpointing, flash attention if installed and flex attention otherwise, and
  Liger's kernels if installed

All train the same LoRA on the seven projections. Utilisation is the operations that training requires
(`fc_lightning.models.flops`) over those of a large bf16 matrix product in the same process. Results are written as they
come. `--tiny` runs everything on a CPU with a small model, to see that it works; `benchmarks/gpu_checks.py` checks on
the device what the tests check on a CPU.
"""

import argparse
import json
import os
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
sys.path.insert(0, str(ROOT / "src"))
CONTENDERS = ("fc-lightning", "TRL as it comes", "TRL tuned")
WARM, STEPS = 4, 8


def lora() -> LoraConfig:
    return LoraConfig(r=16, lora_alpha=64, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")


def random_documents(length: int, share: float, vocabulary: int, num_tokens: int) -> list[dict[str, Any]]:
    """Random conversations with at least this many tokens together, none longer than a row."""
    generator = random.Random(0)
    documents, tokens = [], 0
    while tokens < num_tokens:
        size = min(length, max(64, round(generator.lognormvariate(6.29, 0.6))))
        ids = [generator.randrange(10, vocabulary) for _ in range(size)]
        start = size - max(1, round(share * size))
        documents.append({"id": str(len(documents)), "input_ids": ids, "supervised": [start, size]})
        tokens += size
    return documents


class StepTimer:
    """Seconds of the steps after the first few, and the tokens of each step that are reported to it."""

    def __init__(self, device: str):
        self.device = device
        self.steps = 0
        self.started = self.seconds = 0.0

    def step(self) -> None:
        self.steps += 1
        if self.steps in (WARM, WARM + STEPS):
            if self.device == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            self.started, self.seconds = now, now - self.started


def run_ours(folder: str, packs: list[Any], length: int, device: str) -> tuple[float, int]:
    """Seconds and tokens of the timed steps."""
    from lightning import Callback, Trainer

    from fc_lightning.data.collator import PackingCollator
    from fc_lightning.training.module import FunctionCallingModule

    timer = StepTimer(device)

    class Clock(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            timer.step()

    module = FunctionCallingModule(folder, peft=lora())
    trainer = Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, precision="bf16-mixed", max_steps=WARM + STEPS,
        gradient_clip_val=1.0, logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[Clock()],
        enable_model_summary=False,
    )  # fmt: skip
    workers = 2 if device == "cuda" else 0
    collate = PackingCollator(0, pad_to=length)
    loader = DataLoader(packs, batch_size=1, collate_fn=collate, num_workers=workers, pin_memory=device == "cuda")
    trainer.fit(module, loader)
    return timer.seconds, sum(len(row["input_ids"]) for pack in packs[WARM : WARM + STEPS] for row in pack)


def run_trl(
    folder: str, documents: list[Any], length: int, device: str, tuned: bool, batch_size: int
) -> tuple[float, int]:
    """Seconds and tokens of the timed steps."""
    import datasets
    from transformers import TrainerCallback
    from transformers.utils import is_flash_attn_2_available, is_liger_kernel_available
    from trl import SFTConfig, SFTTrainer

    timer = StepTimer(device)

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            timer.step()

    attention, settings = {}, {}
    if tuned:
        settings = {"gradient_checkpointing": False, "packing": True}
        if device == "cuda":
            kernel = "flash_attention_2" if is_flash_attn_2_available() else "flex_attention"
            attention = {"attn_implementation": kernel}
            settings["use_liger_kernel"] = is_liger_kernel_available()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **attention)
    rows = []
    for document in documents:
        start, ids = document["supervised"][0], document["input_ids"]
        rows.append({"input_ids": ids, "labels": [-100] * start + ids[start:]})
    with tempfile.TemporaryDirectory() as output:
        config = SFTConfig(
            output, max_steps=WARM + STEPS, per_device_train_batch_size=batch_size, max_length=length, bf16=True,
            use_cpu=device == "cpu", save_strategy="no", report_to="none", disable_tqdm=True,
            train_sampling_strategy="sequential", **settings,
        )  # fmt: skip
        trainer = SFTTrainer(
            model, config, train_dataset=datasets.Dataset.from_list(rows), peft_config=lora(), callbacks=[Clock()],
            processing_class=AutoTokenizer.from_pretrained(folder),
        )  # fmt: skip
        trainer.train()
    used = trainer.train_dataset.select(range(WARM * batch_size, (WARM + STEPS) * batch_size))
    return timer.seconds, sum(map(len, used["input_ids"]))


def matmul_flops(device: str) -> float:
    """Operations per second of a large bf16 product."""
    size = 8192 if device == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    timer = StepTimer(device)
    for _ in range(WARM + STEPS):
        a @ b
        timer.step()
    return 2 * size**3 * STEPS / timer.seconds


def measure(contender: str, folder: str, length: int, share: float, device: str) -> dict[str, Any]:
    """Run one contender in one setting."""
    from fc_lightning.data.packing import plan_packs

    vocabulary = Gemma2Config.from_pretrained(folder).vocab_size
    batch_size = 8 if contender == "TRL as it comes" else 1
    documents = random_documents(length, share, vocabulary, (WARM + STEPS + 4) * max(length, batch_size * 1000))
    packs = [[documents[n] for n in pack] for pack in plan_packs([len(d["input_ids"]) for d in documents], length)]
    while True:
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            if contender == "fc-lightning":
                seconds, tokens = run_ours(folder, packs, length, device)
            else:
                seconds, tokens = run_trl(folder, documents, length, device, contender == "TRL tuned", batch_size)
            break
        except torch.OutOfMemoryError:
            if batch_size == 1:
                return {"failed": "out of memory"}
            batch_size //= 2
        except Exception as error:  # a contender that fails is a result
            return {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"}
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
    return {
        "batch_size": batch_size,
        "tokens_per_second": tokens / seconds,
        "step_seconds": seconds / STEPS,
        "peak_memory_gb": peak,
        "flops_per_token": flops_per_token(folder, packs),
    }


def flops_per_token(folder: str, packs: list[Any]) -> float:
    """Operations that training requires, over the timed packs."""
    from fc_lightning.data.collator import PackingCollator
    from fc_lightning.models.flops import TrainingCost

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(Gemma2Config.from_pretrained(folder)).requires_grad_(False)
    cost = TrainingCost.of_model(model)
    batches = [PackingCollator(0)([pack]) for pack in packs[WARM : WARM + STEPS]]
    return sum(map(cost.flops, batches)) / sum(batch["num_tokens"] for batch in batches)


def contend(contender: str, folder: str, output: Path, tiny: bool) -> None:
    """Run one contender in all settings, and append each result to the file."""
    device = "cpu" if tiny else "cuda"
    peak = matmul_flops(device)
    for length in (256,) if tiny else (2048, 8192):
        for share in (0.12, 1.0):
            started = time.perf_counter()
            result = {"contender": contender, "length": length, "supervised": share}
            result |= measure(contender, folder, length, share, device)
            if "tokens_per_second" in result:
                result["matmul_tflops"] = peak / 1e12
                result["utilization"] = result["tokens_per_second"] * result["flops_per_token"] / peak
            result["wall_seconds"] = time.perf_counter() - started
            with output.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(result, file=sys.stderr, flush=True)


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = ["| | row | supervised | tokens/s | utilization | peak memory, GB |", "|---|---:|---:|---:|---:|---:|"]
    for run in results:
        head = f"| {run['contender']} | {run['length']:,} | {run['supervised']:.0%} |"
        if "failed" in run:
            lines.append(f"{head} {run['failed']} | | |")
            continue
        lines.append(
            f"{head} {run['tokens_per_second']:,.0f} | {run['utilization']:.1%} | {run['peak_memory_gb']:.1f} |"
        )
    return "\n".join(lines)


def write_random_model(folder: str, config: Gemma2Config, device: str) -> None:
    """A base with random weights, and the tokenizer of the tests."""
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "tests" / "models" / "tiny_gemma2").save_pretrained(folder)


def main() -> None:
    """Make the random model, run the contenders, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--folder", help="where the random model is or is written; a temporary folder if missing")
    parser.add_argument("--contend", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    lines = args.output.with_suffix(".jsonl")
    if args.contend:
        contend(args.contend, args.folder, lines, args.tiny)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or temporary
        if not (Path(folder) / "config.json").exists():
            tiny = Gemma2Config.from_pretrained(ROOT / "tests" / "models" / "tiny_gemma2")
            # The defaults of the class are the shapes of Gemma 2 2B.
            write_random_model(folder, tiny if args.tiny else Gemma2Config(), "cpu" if args.tiny else "cuda")
        lines.unlink(missing_ok=True)
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        for contender in args.contenders:
            command = [sys.executable, __file__, "--contend", contender, "--folder", folder]
            command += ["--output", str(args.output), *["--tiny"] * args.tiny]
            subprocess.run(command, check=False, env=environment)
    results = [json.loads(line) for line in lines.read_text().splitlines()]
    device = "CPU" if args.tiny else torch.cuda.get_device_name()
    args.output.write_text(json.dumps({"device": device, "torch": torch.__version__, "runs": results}, indent=1) + "\n")
    lines.unlink()
    print(f"{device}, torch {torch.__version__}\n\n{table(results)}")


if __name__ == "__main__":
    main()
