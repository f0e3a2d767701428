"""On one GPU: the checks that the tests make on a CPU, and a real run with validation by generation.

    python benchmarks/gpu_checks.py --output checks.json

Small models with both kinds of attention layers and heads 256 wide, as in Gemma; everything random, nothing downloaded.
Each check is one line of the output: its name, what was measured, what is allowed. `--tiny` runs on a CPU.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, Gemma2Config

from fc_lightning.data.collator import Batch, PackingCollator
from fc_lightning.data.packing import plan_packs
from fc_lightning.models.attention import BY_DOCUMENT, choose_attention
from fc_lightning.models.compilation import compile_layers
from fc_lightning.models.loading import load_base
from fc_lightning.models.lora import add_adapter, add_token_rows, unwrap_peft
from fc_lightning.models.loss import token_loss_sum
from fc_lightning.models.merging import merge_adapter
from gpu import ROOT, lora, random_documents, write_random_model

Check = tuple[str, float, float]  # name, what was measured, the most that is allowed
SHAPES = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "head_dim": 256, "vocab_size": 4096}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 200}


def small_model(folder: str, attention: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """With an adapter whose weights are far from their initial values, and two new tokens."""
    torch.manual_seed(0)
    model = load_base(folder, None, dtype, attention)
    add_token_rows(model, {4096: [10, 11], 4097: [12, 13]})
    config = lora()
    config.lora_dropout = 0.0
    model = add_adapter(model, config, [4096, 4097])
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.to(device).train()


def on_device(packs: list[Any], device: torch.device) -> Batch:
    batch: Any = PackingCollator(0, pad_to=2048)(packs)
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}  # type: ignore[return-value]


def loss_and_gradient(model: Any, batch: Batch, mixed: bool) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    with torch.autocast(batch["input_ids"].device.type, torch.bfloat16, enabled=mixed):
        loss = token_loss_sum(model, batch)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def check_numbers(device: torch.device) -> Iterator[Check]:
    """Packs isolated, loss and gradients those of fp32 eager attention on separate rows, merged equal to adapted."""
    attention, _ = choose_attention(device, mixed=False)
    with tempfile.TemporaryDirectory() as folder:
        write_random_model(folder, Gemma2Config(**SHAPES, **HEADS), device.type)
        documents = random_documents(900, 0.3, 4096, 1500)[:3]
        documents[0]["input_ids"][5] = documents[1]["input_ids"][-1] = 4096
        eager = small_model(folder, "eager", device)
        apart = [loss_and_gradient(eager, on_device([[document]], device), False) for document in documents]
        loss, gradient = sum(loss for loss, _ in apart), sum(gradient for _, gradient in apart)
        for kind, name, mixed, dtype, allowed in (
            (BY_DOCUMENT, "bf16", True, torch.bfloat16, 3e-2),
            (attention, "fp32", False, torch.float32, 1e-4),
            (attention, "bf16", True, torch.bfloat16, 3e-2),
        ):
            packed = small_model(folder, kind, device, dtype)
            actual, actual_gradient = loss_and_gradient(packed, on_device([documents], device), mixed)
            yield f"loss of a pack, {name} {kind} against fp32 eager", abs(actual / loss - 1), allowed
            difference = float((actual_gradient - gradient).norm() / gradient.norm())
            yield f"gradient of a pack, {name} {kind} against fp32 eager", difference, 5 * allowed
        unsupervised = [{**documents[0], "supervised": []}, documents[1]]
        other = {**unsupervised[0], "input_ids": list(reversed(documents[0]["input_ids"]))}
        losses = [
            loss_and_gradient(packed, on_device([pack], device), True)[0]
            for pack in (unsupervised, [other, documents[1]])
        ]
        yield "loss of a document with another one before it", abs(losses[0] - losses[1]), 0.0
        ids = torch.tensor([documents[0]["input_ids"]], device=device)
        with torch.no_grad():
            eager.eval()
            expected = unwrap_peft(eager)(ids).logits
            merged = merge_adapter(eager)(ids).logits
        yield "logits merged against adapted, fp32", float((merged - expected).abs().max()), 1e-3


def kernels_that_read_back(folder: Path) -> int:
    """How many kernels load from a pointer after they have stored to it, of those that Inductor wrote into a folder."""
    texts = [path.read_text(encoding="utf-8") for path in folder.rglob("*.py")]
    kernels = {kernel for text in texts for kernel in re.findall(r"def (triton_\w+\(.*?)'{3}", text, re.DOTALL)}
    return sum(
        any(f"tl.load({store[1]} " in kernel[store.end() :] for store in re.finditer(r"tl\.store\((\w+)", kernel))
        for kernel in kernels
    )


def check_compiled(device: torch.device) -> Iterator[Check]:
    """Compiled layers have the loss and the gradient of plain ones, for many packs, and kernels without a race."""
    attention, _ = choose_attention(device, mixed=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/kernels"
        write_random_model(folder, Gemma2Config(**SHAPES, **HEADS), device.type)
        plain, compiled = (small_model(folder, attention, device, torch.bfloat16) for _ in range(2))
        compile_layers(unwrap_peft(compiled), device)
        documents = random_documents(900, 0.3, 4096, 50_000)
        packs = plan_packs([len(document["input_ids"]) for document in documents], 2048)
        packs = packs if device.type == "cuda" else packs[:1]  # there each length is compiled
        losses, gradients = [0.0], [0.0]
        for pack in packs:
            batch = on_device([[documents[number] for number in pack]], device)
            (loss, gradient), (other, other_gradient) = (loss_and_gradient(m, batch, True) for m in (plain, compiled))
            losses.append(abs(other / loss - 1))
            gradients.append(float((other_gradient - gradient).norm() / gradient.norm()))
        yield f"largest difference of loss, compiled layers, {len(packs)} packs", max(losses), 0.01
        yield f"largest difference of gradient, compiled layers, {len(packs)} packs", max(gradients), 0.1
        num_read_back = kernels_that_read_back(Path(os.environ.pop("TORCHINDUCTOR_CACHE_DIR")))
        yield "kernels that read back what they have stored", float(num_read_back), 0.0


def check_training(device: torch.device) -> Iterator[Check]:
    """Resumed bit-equal; training graphs compiled once, whatever validation generates."""
    from fc_lightning.cli.lightning_cli import main

    accelerator = "gpu" if device.type == "cuda" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        overlay = Path(folder, "overlay.yaml")
        every_step = {"filename": "{step}", "every_n_train_steps": 1, "save_top_k": -1}
        callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": every_step}
        overlay.write_text(json.dumps({"trainer": {"callbacks": [callback]}}))

        def fit(name: str, steps: int, *arguments: str) -> Path:
            """Train, validating every two steps; returns the checkpoint of the last step."""
            main(
                [
                    "fit", "--config=configs/debug/tiny.yaml", f"--config={overlay}",
                    f"--trainer.accelerator={accelerator}", "--trainer.precision=bf16-mixed",
                    f"--trainer.logger.init_args.save_dir={folder}/{name}", f"--trainer.max_steps={steps}",
                    "--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=2",
                    "--trainer.accumulate_grad_batches=1",
                    "--data.train=[{path: data/quickstart/train.jsonl, limit: 300}]",
                    "--model.schedule=constant_with_warmup", *arguments,
                ]
            )  # fmt: skip
            (checkpoint,) = Path(folder, name).glob(f"**/step={steps}.ckpt")
            return checkpoint

        counters.clear()
        half = fit("half", 2)
        first = counters["stats"]["unique_graphs"]
        straight = fit("straight", 6)
        graphs = counters["stats"]["unique_graphs"] - first
        yield "graphs compiled by six steps and three validations beyond those of two and one", graphs - first, 0.0
        resumed = fit("resumed", 6, f"--ckpt_path={half}")
        weights = [torch.load(path, weights_only=True)["state_dict"] for path in (straight, resumed)]
        difference = max(float((weights[0][name] - weight).abs().max()) for name, weight in weights[1].items())
        yield "largest difference of a weight, resumed at step 2 against straight", difference, 0.0


def check_recipe(device: torch.device) -> Iterator[Check]:
    """The shipped recipe of Gemma 2 2B with random weights on the rows of the quickstart, with validation."""
    with tempfile.TemporaryDirectory() as folder:
        tiny = device.type == "cpu"
        config = Gemma2Config.from_pretrained(ROOT / "tests/models/tiny_gemma2") if tiny else Gemma2Config()
        write_random_model(f"{folder}/base", config, device.type)
        command = [
            sys.executable, "main.py", "fit", "--config", "configs/gemma2_2b_it.yaml", "--model.base", f"{folder}/base",
            "--data.train", "[{path: data/quickstart/train.jsonl, limit: 64}]", "--model.generation.max_new_tokens=32",
            "--data.validation", "[{path: data/quickstart/validation.jsonl, limit: 8}]", "--trainer.max_steps=3",
            "--trainer.accumulate_grad_batches=1", "--trainer.val_check_interval=2",
            "--trainer.check_val_every_n_epoch=null", f"--trainer.logger.init_args.save_dir={folder}/runs",
            *(["--trainer.accelerator=cpu"] if tiny else []),
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        print(done.stdout[-3000:], done.stderr[-3000:], sep="\n", flush=True)
        yield "exit code of the shipped recipe", float(done.returncode), 0.0
        export = [*command[:2], "export", *command[3:], "--ckpt_path=last", f"--output={folder}/merged"]
        done = subprocess.run(export, cwd=ROOT, capture_output=True, text=True, check=False)
        print(done.stdout[-1000:], done.stderr[-2000:], sep="\n", flush=True)
        yield "exit code of its export", float(done.returncode), 0.0
        if not done.returncode:
            model = AutoModelForCausalLM.from_pretrained(f"{folder}/merged", dtype=torch.bfloat16).to(device)
            logits = model(torch.tensor([[2, 10, 11]], device=device)).logits
            yield "logits of the export that are not finite", float((~logits.isfinite()).sum()), 0.0


GROUPS = {"numbers": check_numbers, "compiled": check_compiled, "training": check_training, "recipe": check_recipe}


def main() -> None:
    """Run the checks; write each result as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="on the CPU")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "gpu_checks.json")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    args = parser.parse_args()
    device = torch.device("cpu" if args.tiny else "cuda")
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = f"{ROOT / 'src'}:{os.environ.get('PYTHONPATH', '')}"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    results: list[dict[str, Any]] = []
    for name in args.only:
        group = GROUPS[name]
        started = time.perf_counter()
        try:
            for check, measured, allowed in group(device):
                results.append({"check": check, "measured": measured, "allowed": allowed, "ok": measured <= allowed})
                print(results[-1], flush=True)
        except (Exception, SystemExit) as error:  # the other checks still run
            results.append({"check": group.__name__, "ok": False, "error": f"{type(error).__name__}: {error}"[:1000]})
            print(results[-1], flush=True)
        print(f"{group.__name__}: {time.perf_counter() - started:.0f} s", flush=True)
        card = "CPU" if args.tiny else torch.cuda.get_device_name()
        args.output.write_text(json.dumps({"device": card, "torch": torch.__version__, "checks": results}, indent=1))
    print(f"{sum(result['ok'] for result in results)} of {len(results)} checks passed")


if __name__ == "__main__":
    main()
