"""EMA: the average is the average, and it is what is evaluated, saved, resumed and exported."""

import json
from typing import ClassVar

import pytest
import torch
from lightning import Callback
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fc_lightning import FunctionCallingModule

DECAY = 0.5
SMALL = (
    "--data.train=[{path: data/quickstart/train.jsonl, limit: 6}]",
    "--data.validation=[{path: data/quickstart/validation.jsonl, limit: 1}]",
    "--model.generation.max_new_tokens=2",
    "--data.packing=false",
    "--model.learning_rate=0.01",
)


def trained(module) -> dict:
    return {name: weight.detach().clone() for name, weight in module.named_parameters() if weight.requires_grad}


class Follower(Callback):
    """Computes the average anew from the weights after each step, and keeps what was evaluated."""

    evaluated: ClassVar[list[dict]] = []
    average: ClassVar[dict] = {}
    weights: ClassVar[dict] = {}

    def __init__(self):
        self.step, self.updates = 0, 0

    def on_train_start(self, trainer, pl_module):
        Follower.average, self.step = trained(pl_module), trainer.global_step

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            self.updates += 1
            decay = min(DECAY, (1 + self.updates) / (10 + self.updates))
            Follower.weights = trained(pl_module)
            Follower.average = {
                name: decay * old + (1 - decay) * Follower.weights[name] for name, old in Follower.average.items()
            }

    def on_validation_batch_start(self, trainer, pl_module, *_):
        Follower.evaluated.append(trained(pl_module))


def callbacks() -> str:
    ema = {"class_path": "fc_lightning.callbacks.EMA", "init_args": {"decay": DECAY}}
    return f"--trainer.callbacks+={json.dumps([ema, {'class_path': 'tests.callbacks.test_ema.Follower'}])}"


def assert_same(one: dict, other: dict, **tolerances) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **tolerances)


def test_the_average_is_evaluated_saved_and_exported(run, tmp_path):
    folder = run("fit", *SMALL, callbacks())
    average, weights = Follower.average, Follower.weights
    assert any((average[name] - weights[name]).abs().max() > 1e-4 for name in average)
    assert_same(Follower.evaluated[-1], average)
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert_same(state["state_dict"], average)  # nothing of the base
    assert_same(state["ema"]["weights"], weights)
    final = load_file(folder / "adapter" / "adapter_model.safetensors")
    beside = load_file(folder / "checkpoints" / "last.adapter" / "adapter_model.safetensors")
    assert_same(final, beside)
    output = tmp_path / "exported"
    run("export", "--ckpt_path=last", f"--output={output}", config=folder / "config.yaml")
    ids = AutoTokenizer.from_pretrained(output)("<start_of_turn>user\nhi", return_tensors="pt").input_ids
    evaluated = FunctionCallingModule.load_from_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert_same(trained(evaluated), Follower.evaluated[-1])
    models = {
        "saved": AutoPeftModelForCausalLM.from_pretrained(folder / "adapter", dtype=torch.float32),
        "exported": AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32),
    }
    with torch.no_grad():
        expected = evaluated.model.eval()(ids).logits
        for name, model in models.items():
            torch.testing.assert_close(model.eval()(ids).logits, expected, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.slow
def test_a_finished_run_that_is_resumed_keeps_the_average(run):
    folder = run("fit", *SMALL, callbacks())
    saved = load_file(folder / "adapter" / "adapter_model.safetensors")
    again = run("fit", *SMALL, callbacks(), f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}")
    assert_same(load_file(again / "adapter" / "adapter_model.safetensors"), saved, atol=0, rtol=0)


@pytest.mark.slow
def test_a_resumed_run_has_the_same_average(run):
    schedule = "--model.schedule=constant_with_warmup", "--model.warmup=0"
    whole = run("fit", *SMALL, *schedule, callbacks(), "--trainer.max_epochs=2")
    expected = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    half = run("fit", *SMALL, *schedule, callbacks(), "--trainer.max_epochs=1")
    resumed = run(
        "fit", *SMALL, *schedule, callbacks(), "--trainer.max_epochs=2",
        f"--ckpt_path={half / 'checkpoints' / 'last.ckpt'}",
    )  # fmt: skip
    found = torch.load(resumed / "checkpoints" / "last.ckpt", weights_only=True)
    assert_same(found["state_dict"], expected["state_dict"], atol=0, rtol=0)
    assert_same(found["ema"]["weights"], expected["ema"]["weights"], atol=0, rtol=0)
    assert found["ema"]["num_updates"] == expected["ema"]["num_updates"]
