"""Whole runs through the command line, on the tiny model."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

CALLBACK = """
from lightning import Callback

class Collect(Callback):
    turns = []

    def __init__(self, label: str):
        self.label = label

    def on_tool_calls_evaluated(self, trainer, pl_module, evaluated):
        Collect.turns.append((self.label, evaluated))
"""


def metrics(folder: Path) -> dict[str, float]:
    """The last value of each logged metric."""
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    return {name: float(row[name]) for row in rows for name in row if row[name]}


def test_fit_writes_a_run_folder_and_tells_a_callback_from_yaml(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "users_callbacks.py").write_text(CALLBACK)
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "trainer:\n  callbacks+:\n    - class_path: users_callbacks.Collect\n      init_args: {label: mine}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = run("fit", "--config", str(overlay))

    assert {"config.yaml", "metrics.csv", "predictions.jsonl", "adapter", "checkpoints"} <= {
        path.name for path in folder.iterdir()
    }
    logged = metrics(folder)
    names = ("exact_match", "name_match", "parse_rate", "grammar", "loss")
    assert {"train/loss", *(f"val/{name}" for name in names)} <= set(logged)
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").open()]
    assert set(lines[0]) >= {
        *("id", "turn", "category", "prompt", "text", "expected", "predicted", "exact_match", "name_match", "grammar")
    }
    label, evaluated = sys.modules["users_callbacks"].Collect.turns[-1]
    assert label == "mine"
    assert [turn.id for turn in evaluated] == [line["id"] for line in lines]
    assert "next:" in capsys.readouterr().out


def test_checkpoint_adapter_and_export_are_one_model(run, tmp_path):
    folder = run("fit", "--data.validation=null", "--trainer.max_steps=2")
    output = tmp_path / "exported"
    checkpoint = folder / "checkpoints" / "last.ckpt"
    run("export", f"--ckpt_path={checkpoint}", f"--output={output}", config=folder / "config.yaml")
    tokenizer = AutoTokenizer.from_pretrained(output)
    ids = tokenizer("<start_of_turn>user\n<tools> hi", return_tensors="pt").input_ids
    merged = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    adapted = AutoPeftModelForCausalLM.from_pretrained(folder / "adapter", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained("tests/models/tiny_gemma2")
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=1e-5, rtol=1e-5)
        known = ids.clamp(max=base.config.vocab_size - 1)
        change = merged(known).logits[..., : base.config.vocab_size] - base(known).logits
        assert change.abs().max() > 1e-4  # two steps did change something
    assert tokenizer.chat_template


def test_every_weight_can_be_trained(run):
    folder = run("fit", "--model.peft=null", "--data.validation=null", "--trainer.max_steps=1")
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    base = AutoModelForCausalLM.from_pretrained("tests/models/tiny_gemma2")
    assert {name.removeprefix("model.") for name in state} >= {name for name, _ in base.named_parameters()}


def test_a_base_in_four_bits_trains_and_exports_whole(run, tmp_path):
    pytest.importorskip("bitsandbytes")
    # Without validation: the kernels that generate on a CPU want wider matrices than the tiny model has.
    settings = ["--model.quantization={load_in_4bit: true, bnb_4bit_quant_type: nf4}", "--trainer.precision=bf16-mixed"]
    folder = run("fit", *settings, "--data.validation=null", "--trainer.max_steps=2")
    losses = metrics(folder)
    assert 0 < losses["train/loss"] < 7
    output = tmp_path / "exported"
    checkpoint = folder / "checkpoints" / "last.ckpt"
    run("export", f"--ckpt_path={checkpoint}", f"--output={output}", config=folder / "config.yaml")
    base = AutoModelForCausalLM.from_pretrained("tests/models/tiny_gemma2").state_dict()
    merged = AutoModelForCausalLM.from_pretrained(output).state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    change = (merged[name].float() - base[name].float()).abs().max()
    assert 0 < change < 0.05  # the adapter's two steps; rounding to 4 bits would be more


def test_checkpoints_hold_trained_weights_only(run):
    folder = run("fit", "--data.validation=null", "--trainer.max_steps=1")
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert state
    assert all("lora_" in name or "trainable_tokens" in name for name in state)


def test_validate_measures_the_untouched_base_and_test_and_predict_write_predictions(run):
    assert "val/exact_match" in metrics(run("validate"))
    tested = run("test")
    assert "test/exact_match" in metrics(tested)
    expected = (tested / "predictions.jsonl").read_text()
    predicted = run("predict")
    assert (predicted / "predictions.jsonl").read_text() == expected


def test_last_is_the_newest_checkpoint_of_the_configuration(run):
    """Of a run before this one, for which Lightning would not look."""
    short = ("--data.validation=[{path: data/quickstart/validation.jsonl, limit: 1}]", "--model.learning_rate=0.02")
    folder = run("fit", *short, "--trainer.max_steps=2")
    last = folder / "checkpoints" / "last.ckpt"
    loss = metrics(run("validate", *short, "--ckpt_path=last"))["val/loss"]
    assert loss == metrics(folder)["val/loss"]
    assert loss != metrics(run("validate", *short))["val/loss"]
    tested = metrics(run("test", *short, "--ckpt_path=best"))
    assert tested["test/loss"] == loss
    last.write_bytes(b"")
    assert metrics(run("validate", *short, "--ckpt_path=last"))["val/loss"] == loss  # the one before, of the same step


def test_one_command_for_a_job_that_is_started_again_and_again(run, tmp_path):
    """As in `examples/slurm.sh`: a folder of the job's own, and what is in it is gone on from."""
    again = ("--trainer.logger.init_args.version=job_1", "--ckpt_path=last", "--data.validation=null")
    again = (*again, "--trainer.max_epochs=2")  # a run that has all of its steps has ended its epoch too
    run("fit", *again, "--trainer.max_steps=1")
    folder = next((tmp_path / "runs").glob("*/job_1"))
    last = folder / "checkpoints" / "last.ckpt"
    shutil.rmtree(last.parent)  # killed before there was one
    run("fit", *again, "--trainer.max_steps=1")
    run("fit", *again, "--trainer.max_steps=2")
    assert torch.load(last, weights_only=True)["global_step"] == 2


def test_a_checkpoint_of_another_adapter_is_refused(run, capsys):
    folder = run("fit", "--data.validation=null", "--trainer.max_steps=1")
    other = ["--model.special_tokens=[]", f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"]
    with pytest.raises(SystemExit):
        run("fit", "--data.validation=null", "--trainer.max_steps=2", *other)
    assert "the checkpoint does not match the configuration" in capsys.readouterr().err.splitlines()[-1]


def test_the_original_recipe_runs_as_it_is(run, tmp_path):
    """`gemma2_2b_it.yaml` with only base and data replaced: three optimizer steps, validation with generation."""
    recipe = Path("configs/gemma2_2b_it.yaml")
    folder = run(
        "fit",
        "--model.base=tests/models/tiny_gemma2",
        "--data.train=[{path: data/quickstart/train.jsonl, limit: 400}]",
        "--data.validation=[{path: data/quickstart/validation.jsonl, limit: 2}]",
        config=recipe,
    )
    logged = metrics(folder)
    assert "val/exact_match" in logged
    steps = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert steps >= 3


def test_audit_shows_the_data(run, capsys):
    run("audit", "--examples=1")
    out = capsys.readouterr().out
    assert "4,813" in out  # tokens of the training rows
    assert "<start_of_turn>model" in out
