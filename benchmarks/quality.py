"""What helps a small model make more correct calls: train variants of a recipe, evaluate them, one JSON line per run.

    python benchmarks/quality.py --train train.jsonl --validation validation.jsonl --variants plain mask_names all
    python benchmarks/quality.py --table --results benchmarks/results/quality_h200.jsonl

`plain` trains on the rows as they are, two per step; every other variant changes some of these settings. Every run is
evaluated as it is, under all perturbations, and by sampling (pass@1 and pass@8 at temperature 0.8). A run that already
has a line is not repeated, so that an interrupted sweep continues where it stopped. Several runs can share a GPU:

    python benchmarks/quality.py ... --jobs 6 --set=--trainer.accelerator=gpu --set=--data.packing=true

`--table` prints the results as Markdown, each share with its standard error; differences are to `plain`, over the runs
with the same seed.
"""

import argparse
import csv
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

from fc_lightning.cli.defaults import CALLBACKS
from fc_lightning.training.checkpoint_io import peek

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "quality.jsonl"

PLAIN = [  # every variant starts from it
    "--data.augmentation=null",
    "--data.max_length=1024",
    "--data.packing=false",
    "--model.learning_rate=4e-4",
    "--model.schedule=cosine",
    "--model.token_weights=null",
    "--model.generation.max_new_tokens=192",
    "--trainer.accumulate_grad_batches=2",
    f"--trainer.callbacks={json.dumps(CALLBACKS)}",
]
VARIANTS: dict[str, list[str]] = {
    "plain": [],
    "shuffle_tools": ["--data.augmentation.shuffle_tools=0.5"],
    "distractors": ["--data.augmentation.distractors=0.5"],
    "drop_tool": ["--data.augmentation.drop_tool=0.1"],
    "mask_names": ["--data.augmentation.mask_names=0.5"],
    "all": [
        "--data.augmentation.shuffle_tools=0.5",
        "--data.augmentation.distractors=0.5",
        "--data.augmentation.drop_tool=0.1",
        "--data.augmentation.mask_names=0.5",
    ],
    "shuffle_drop_mask": [
        "--data.augmentation.shuffle_tools=0.5",
        "--data.augmentation.drop_tool=0.2",
        "--data.augmentation.mask_names=0.4",
    ],
    "shuffle_drop_mask_answer_4": [
        "--data.augmentation.shuffle_tools=0.5",
        "--data.augmentation.drop_tool=0.1",
        "--data.augmentation.mask_names=0.4",
        "--model.token_weights.answer=4",  # four times the rows without a call, without the time for them
    ],
    "one_pack": [  # steps of half as many tokens, and twice as many steps
        "--data.augmentation.shuffle_tools=0.5",
        "--data.augmentation.drop_tool=0.1",
        "--data.augmentation.mask_names=0.4",
        "--trainer.accumulate_grad_batches=1",
    ],
    "near_misses": [  # the remaining tools may be similar to the dropped one
        "--data.augmentation.shuffle_tools=0.5",
        "--data.augmentation.drop_tool=0.15",
        "--data.augmentation.drop_tool_similarity=0.8",
        "--data.augmentation.mask_names=0.5",
        "--model.token_weights.answer=2.5",
        "--trainer.accumulate_grad_batches=1",
    ],
    "join_requests": ["--data.augmentation.join_requests=0.25"],
    "value_weight_2": ["--model.token_weights.argument_value=2"],
    "name_weight_2": ["--model.token_weights.function_name=2"],
    "lora_plus_4": ["--model.lora_plus_ratio=4"],
    "learning_rate_2e-4": ["--model.learning_rate=2e-4"],
    "learning_rate_8e-4": ["--model.learning_rate=8e-4"],
    "rank_32": ["--model.peft.init_args.r=32", "--model.peft.init_args.lora_alpha=64"],
    "supervise_all": ["--model.supervise=all"],
    "packing": ["--data.packing=true", "--trainer.accumulate_grad_batches=1"],
    "template_reasoning": ["--data.thoughts=template"],
    "preference": ["--model.preference.weight=1"],  # rows of `mine` are in the training data
}
VARIANTS["all_rank_32"] = [*VARIANTS["all"], *VARIANTS["rank_32"]]
VARIANTS["one_pack_rank_64"] = [
    *VARIANTS["one_pack"],
    "--model.peft.init_args.r=64",
    "--model.peft.init_args.lora_alpha=128",
    "--model.learning_rate=2e-4",
]
VARIANTS["one_row"] = [*VARIANTS["near_misses"], "--model.token_weights=null", "--model.learning_rate=2e-4"]
VARIANTS["joined"] = [*VARIANTS["near_misses"], *VARIANTS["join_requests"]]
VARIANTS["joined_light"] = [
    *VARIANTS["joined"],
    "--data.augmentation.drop_tool=0.1",
    "--data.augmentation.mask_names=0.35",
    "--model.token_weights.answer=1.5",
]
VARIANTS["joined_light_average"] = [  # weights averaged over about the last 500 steps, at a constant learning rate
    *VARIANTS["joined_light"],
    "--model.learning_rate=3e-4",
    "--model.schedule=constant_with_warmup",
    "--trainer.callbacks+=fc_lightning.callbacks.EMA",
    "--trainer.callbacks.decay=0.998",
]
VARIANTS["more_joined_average"] = [
    *VARIANTS["joined_light_average"],
    "--data.augmentation.join_requests=0.4",
    "--data.augmentation.mask_names=0.5",
]
VARIANTS["one_pack_template_reasoning"] = [*VARIANTS["one_pack"], "--data.thoughts=template"]
PERTURBATIONS = ("shuffle_tools", "distractors", "mask_names", "drop_tool")
SAMPLES = 8


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/gemma3_270m.yaml", help="the recipe")
    parser.add_argument("--train", nargs="+", help="JSONL files to train on; the recipe's own if not given")
    parser.add_argument("--validation", nargs="+", help="JSONL files to evaluate on; the recipe's own if not given")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--runs", default="runs/quality", help="folder of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--set", action="append", default=[], help="a setting of all runs, --set=--KEY=VALUE")
    parser.add_argument("--no_sampling", action="store_true", help="leave out pass@1 and pass@8")
    parser.add_argument("--table", action="store_true", help="print the results and train nothing")
    return parser.parse_args()


def command_line(subcommand: str, given: Sequence[str], log: Path) -> None:
    """Run a subcommand; its output is appended to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        command = [sys.executable, str(ROOT / "main.py"), subcommand, *given]
        subprocess.run(command, cwd=ROOT, check=True, stdout=file, stderr=subprocess.STDOUT)


def last_metrics(folder: Path, prefix: str = "val/") -> dict[str, float]:
    """The last value of each metric in the newest run below a folder."""
    newest = max(folder.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime)
    values: dict[str, float] = {}
    with newest.open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            values |= {name: float(value) for name, value in row.items() if value and name.startswith(prefix)}
    return values


def train_and_evaluate(variant: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One run: fit, then validation with perturbations, then validation by sampling."""
    folder = Path(args.runs).resolve() / f"{variant}-{seed}"
    log = folder / "log.txt"
    given = {split: getattr(args, split) for split in ("train", "validation")}
    data = [f"--data.{split}={json.dumps([{'path': one} for one in paths])}" for split, paths in given.items() if paths]
    settings = [f"--config={args.config}", *data, f"--seed_everything={seed}", f"--data.seed={seed}"]
    settings += [f"--trainer.max_epochs={args.epochs}", *PLAIN, *VARIANTS[variant], *args.set]

    def runs(name: str) -> str:
        return f"--trainer.logger.init_args.save_dir={folder / name}"

    started = time.monotonic()
    command_line("fit", [*settings, runs("fit"), "--trainer.num_sanity_val_steps=0"], log)
    minutes = (time.monotonic() - started) / 60
    checkpoint = max((folder / "fit").rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
    evaluate = [*settings, f"--ckpt_path={checkpoint}"]
    perturbations = f"--data.perturbations=[{', '.join(PERTURBATIONS)}]"
    command_line("validate", [*evaluate, runs("plain"), perturbations], log)
    metrics = last_metrics(folder / "plain")
    if not args.no_sampling:
        sampling = {"do_sample": "true", "temperature": "0.8", "num_return_sequences": str(SAMPLES)}
        sampled = [f"--model.generation.{name}={value}" for name, value in sampling.items()]
        command_line("validate", [*evaluate, runs("sampled"), *sampled], log)
        by_sampling = last_metrics(folder / "sampled")
        metrics["val/pass_at_1"] = by_sampling["val/exact_match"]
        metrics[f"val/pass_at_{SAMPLES}"] = by_sampling[f"val/pass_at_{SAMPLES}"]
    predictions = next((folder / "plain").rglob("predictions.jsonl")).read_text(encoding="utf-8")
    return {
        "variant": variant,
        "seed": seed,
        "config": args.config,
        "settings": [*VARIANTS[variant], *args.set],
        "epochs": args.epochs,
        "steps": peek(checkpoint)["global_step"],
        "minutes": round(minutes, 2),
        "turns": len(predictions.splitlines()),
        "metrics": metrics,
    }


def read_results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def table(results: Sequence[dict[str, Any]]) -> str:
    """Exact match of each variant as Markdown; the standard error is that of a share of the turns of all its runs."""
    columns = ["exact_match", "abstention", *(f"exact_match/{name}" for name in ("shuffled", "distracted", "masked"))]
    columns += ["abstention/dropped", f"pass_at_{SAMPLES}"]
    plain = {one["seed"]: one for one in results if one["variant"] == "plain"}
    rows = [f"| variant | seeds | {' | '.join(columns)} | difference |", "|---" * (len(columns) + 3) + "|"]
    for variant in dict.fromkeys(one["variant"] for one in results):
        runs = [one for one in results if one["variant"] == variant]
        shares = []
        for column in columns:
            values = [run["metrics"][name] for run in runs if (name := f"val/{column}") in run["metrics"]]
            shares.append(f"{mean(values):.3f}" if values else "–")
        value = mean(run["metrics"]["val/exact_match"] for run in runs)
        shares[0] += f" ± {math.sqrt(value * (1 - value) / sum(run['turns'] for run in runs)):.3f}"
        pairs = [(run, plain[run["seed"]]) for run in runs if run["seed"] in plain]
        gains = [one["metrics"]["val/exact_match"] - other["metrics"]["val/exact_match"] for one, other in pairs]
        difference = f"{mean(gains):+.3f}" if gains and variant != "plain" else ""
        rows.append(f"| {variant} | {len(runs)} | {' | '.join(shares)} | {difference} |")
    return "\n".join(rows)


def main() -> None:
    args = arguments()
    if args.table:
        print(table(read_results(args.results)))
        return
    known = [(one["variant"], one["seed"], one["epochs"]) for one in read_results(args.results)]
    wanted = [(variant, seed) for seed in args.seeds for variant in args.variants]
    missing = [(variant, seed) for variant, seed in wanted if (variant, seed, args.epochs) not in known]
    args.results.parent.mkdir(parents=True, exist_ok=True)
    writing = threading.Lock()

    def run(variant: str, seed: int) -> None:
        line = json.dumps(train_and_evaluate(variant, seed, args))
        with writing, args.results.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
        print(line, flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        for done in [pool.submit(run, variant, seed) for variant, seed in missing]:
            if error := done.exception():  # the other runs go on
                print(f"failed: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
