"""However the rows of an optimizer step are spread, the step is the same: one trajectory for all of these runs.

Rows a micro-batch × accumulation × ranks × gradient checkpointing × packed or not × head in chunks or whole; Gemma 2,
Gemma 3; fp32. The rows are made so that packed and unpacked runs see the same conversations in each step: of every
two, the second just fills up the pack of the first.
"""

import csv
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer
from fc_lightning.cli.lightning_cli import main
from fc_lightning.data.formats import read_row
from fc_lightning.data.packing import plan_packs
from fc_lightning.training.module import FunctionCallingModule

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "models" / "tiny_gemma2"
CAPACITY = 256
PACKS = 19  # two a step: nine whole steps and a short one, in which a second rank has nothing to learn from
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Spread:
    """One way to spread the rows of a step: two packs, or the four conversations in them."""

    rows: int
    accumulation: int
    ranks: int
    packed: bool
    checkpointing: bool
    chunked: bool

    def arguments(self) -> list[str]:
        return [
            f"--data.batch_size={self.rows}",
            f"--trainer.accumulate_grad_batches={self.accumulation}",
            f"--trainer.devices={self.ranks}",
            f"--trainer.strategy={'ddp' if self.ranks > 1 else 'auto'}",
            f"--data.packing={self.packed}",
            f"--model.gradient_checkpointing={self.checkpointing}",
            f"--model.head_chunk={16 if self.chunked else 100_000}",
        ]


def spreads() -> Iterator[Spread]:
    for packed, checkpointing, chunked in itertools.product((True, False), repeat=3):
        size = 2 if packed else 4
        for rows, accumulation, ranks in itertools.product((1, 2, 4), (1, 2, 4), (1, 2)):
            if rows * accumulation * ranks == size:
                yield Spread(rows, accumulation, ranks, packed, checkpointing, chunked)


REFERENCE = Spread(rows=4, accumulation=1, ranks=1, packed=False, checkpointing=False, chunked=False)
QUICK = [  # every value of every setting, and most pairs of values
    Spread(rows=1, accumulation=4, ranks=1, packed=False, checkpointing=False, chunked=True),
    Spread(rows=1, accumulation=2, ranks=1, packed=True, checkpointing=True, chunked=False),
    Spread(rows=2, accumulation=1, ranks=2, packed=False, checkpointing=True, chunked=True),
    Spread(rows=1, accumulation=1, ranks=2, packed=True, checkpointing=False, chunked=True),
]


def row(number: int, length: int, answer: int, template: ChatTemplate) -> dict:
    """A conversation of so many tokens, about ``answer`` of them in the model's turn."""

    def make(filler: int) -> dict:
        turns = [("human", "a" + " a" * filler), ("gpt", "b" + " b" * answer)]
        return {"id": f"{number}", "conversations": [{"from": who, "value": text} for who, text in turns]}

    conversation = read_row(make(0), None, "")
    shortest = len(template.encode([template.render(template.messages(conversation), conversation)])[0].input_ids)
    return make(length - shortest)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations two by two, with 1 to 90 words to learn in them."""
    template = ChatTemplate(load_tokenizer(str(TINY), None, tuple(SpecialToken))[0])
    lengths = [length for pack in range(PACKS) for length in (208 - 4 * pack, CAPACITY - 208 + 4 * pack)]
    assert plan_packs(lengths, CAPACITY) == [[2 * pack, 2 * pack + 1] for pack in range(PACKS)]
    answers = [(7 * number) % 90 if number % 2 == 0 else number % 3 for number in range(len(lengths))]
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    sizes = enumerate(zip(lengths, answers, strict=True))
    path.write_text("".join(json.dumps(row(n, length, answer, template)) + "\n" for n, (length, answer) in sizes))
    return path


@pytest.fixture(scope="module", params=["gemma2", pytest.param("gemma3", marks=pytest.mark.slow)])
def base(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "gemma2":
        return TINY
    folder = tmp_path_factory.mktemp("gemma3")
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=16, sliding_window=64, pad_token_id=0, eos_token_id=1,
        bos_token_id=2, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


Trajectory = tuple[list[float], dict[str, Tensor]]


@pytest.fixture(scope="module")
def trajectories(base, data, tmp_path_factory) -> Callable[[list[Spread]], dict[Spread, Trajectory]]:
    """Runs all of them, those on two ranks in one go; returns losses and adapters."""

    def run(wanted: list[Spread], *more: str) -> dict[Spread, Trajectory]:
        folders = {spread: tmp_path_factory.mktemp("run") for spread in wanted}
        jobs = {spread: [*arguments(spread, base, data, folder), *more] for spread, folder in folders.items()}
        for spread in wanted:
            if spread.ranks == 1:
                main(jobs[spread])
        if together := [jobs[spread] for spread in wanted if spread.ranks > 1]:
            file = tmp_path_factory.mktemp("jobs") / "jobs.json"
            file.write_text(json.dumps(together))
            launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
            command = [*launch, "-m", "tests.helpers.sweep", str(file)]
            result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
            assert result.returncode == 0, result.stdout + result.stderr
        return {spread: read(folder) for spread, folder in folders.items()}

    return run


def arguments(spread: Spread, base: Path, data: Path, folder: Path) -> list[str]:
    return [
        *("fit", f"--config={ROOT / 'configs/debug/tiny.yaml'}"),
        f"--model.base={base}",
        f"--data.train=[{{path: {data}, limit: null}}]",
        "--data.validation=null",
        "--data.seed=null",
        f"--data.max_length={CAPACITY}",
        f"--trainer.logger.init_args.save_dir={folder}",
        "--trainer.precision=32-true",
        "--trainer.gradient_clip_val=1.0",
        "--trainer.callbacks=[{class_path: fc_lightning.callbacks.SaveAdapter}]",
        "--trainer.enable_checkpointing=false",
        "--trainer.enable_progress_bar=false",
        *spread.arguments(),
    ]


def read(folder: Path) -> Trajectory:
    (run,) = folder.glob("*/version_0")
    rows = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    losses = [float(row["train/loss"]) for row in rows]
    return losses, load_file(run / "adapter" / "adapter_model.safetensors")


def distance(one: Trajectory, other: Trajectory) -> float:
    """The largest relative difference: of a step's loss, or of an adapter matrix in Frobenius' norm."""
    assert len(one[0]) == len(other[0]) == 10, (one[0], other[0])
    losses = [abs(a - b) / abs(b) for a, b in zip(one[0], other[0], strict=True)]
    weights = [((one[1][name] - weight).norm() / weight.norm()).item() for name, weight in other[1].items()]
    return max(losses + weights)


def check(trajectories: Callable, wanted: list[Spread], *more: str) -> None:
    found = trajectories([REFERENCE, *wanted], *more)
    distances = {spread: distance(found[spread], found[REFERENCE]) for spread in wanted}
    assert max(distances.values()) < TOLERANCE, distances


def test_a_sample_of_spreads_gives_one_trajectory(trajectories):
    check(trajectories, QUICK)


@pytest.mark.slow
def test_all_spreads_give_one_trajectory(trajectories):
    check(trajectories, [spread for spread in spreads() if spread not in (REFERENCE, *QUICK)])


@pytest.mark.slow
def test_token_weights_keep_one_trajectory(trajectories):
    weights = ("--model.token_weights.answer=3", "--model.token_weights.tag=0.5")
    check(trajectories, QUICK, *weights)
    plain, weighted = trajectories([REFERENCE]), trajectories([REFERENCE], *weights)
    assert distance(weighted[REFERENCE], plain[REFERENCE]) > 100 * TOLERANCE


def test_the_mean_of_micro_batch_means_is_another_trajectory(trajectories, monkeypatch):
    """What Lightning does by itself: these rows tell the difference, so the tests above can fail."""

    def mean_loss(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        return loss / max(batch["num_supervised"], 1)

    original = FunctionCallingModule.training_step
    (right,) = trajectories([REFERENCE]).values()
    monkeypatch.setattr(FunctionCallingModule, "training_step", mean_loss)

    def scale_nothing(self, optimizer):
        self.log("train/loss", sum(micro.loss for micro in self._window))

    monkeypatch.setattr(FunctionCallingModule, "on_before_optimizer_step", scale_nothing)
    wrong = trajectories([QUICK[0]])[QUICK[0]]
    weights = [((wrong[1][name] - weight).norm() / weight.norm()).item() for name, weight in right[1].items()]
    assert max(weights) > 100 * TOLERANCE
