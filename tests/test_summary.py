"""What a run says of itself: before it, while it runs, after it, and in its folder."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from fc_lightning.callbacks import ProgressBar
from fc_lightning.callbacks.summary import trainable_line
from fc_lightning.environment import git_state
from fc_lightning.memory import training_bytes
from fc_lightning.modeling import load_base, parameter_counts, token_loss_sum
from fc_lightning.packing import PackingCollator
from fc_lightning.redaction import redact_arguments

QUICK = ("--data.train=[{path: data/quickstart/train.jsonl, limit: 8}]", "--data.packing=false")
PARTIAL = "--trainer.num_sanity_val_steps=1"


def test_a_run_says_what_it_will_do_and_what_came_out(run, capsys, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("trainer:\n  callbacks+:\n    - class_path: fc_lightning.callbacks.TensorBoard\n")
    folder = run("fit", *QUICK, PARTIAL, "--config", str(overlay))
    out = capsys.readouterr().out
    before, _, after = out.partition("optimizer steps in")
    # Counted by hand: a LoRA of r=4 on seven projections of two layers 32 wide (64 inside, two heads of 16, one key
    # head) has 2 × 4 × ((32+32) + (32+16) × 2 + (32+32) + (32+64) × 2 + (64+32)) = 4,096 weights, and 8 new rows.
    assert f"trainable params: {4096 + 8 * 32:,} || all params: 56,128 || trainable%: 7.7537\n" in before
    assert before.count("trainable params") == 1
    assert "8 of 8 rows" in before
    assert "skipped 0, too long 0" in before
    assert "8 rows in 8 micro-batches" in before
    assert "training:   4 optimizer steps of 2 micro-batches" in before
    assert re.search(r"memory:     about \d\.\d GB expected of the process", before)
    assert f"run:        {folder}" in before
    assert "test:" not in before
    assert re.search(r"tokens, [\d,]+ a second", after)
    assert "best:    val/exact_match 0.000" in after
    assert "last:    val/exact_match 0.000" in after
    assert f"python main.py export --config {folder}/config.yaml" in after or "fc-lightning export" in after
    # A part of the validation is not what was right before training.
    assert re.search(r"all +│ 7 +│ – +│ 0.000", after)
    assert list(folder.glob("events.out.tfevents.*"))
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["ranks"] == 1
    # The line of the log file, with the numbers that were logged.
    assert re.search(r"^\d\d:\d\d:\d\d  step 4/4 \(100%\)  epoch 0  loss \d.*tokens/s .*exact match 0.000$", out, re.M)
    assert "\r" not in out


def test_the_trainable_line_is_pefts(capsys):
    model = get_peft_model(
        load_base("tests/models/tiny_gemma2", None, torch.float32, "eager"),
        LoraConfig(r=2, target_modules=["q_proj"]),
    )
    model.print_trainable_parameters()
    assert capsys.readouterr().out.strip() == trainable_line(*parameter_counts(model))


def test_progress_reads_values_only_where_they_were_logged(run, monkeypatch):
    """The device is asked once a logged step, and not each batch."""
    read = []
    monkeypatch.setattr(ProgressBar, "_read", lambda self, trainer: read.append(trainer.global_step))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr(ProgressBar, "is_enabled", property(lambda self: True))
    run("fit", *QUICK, "--data.validation=null", "--trainer.log_every_n_steps=3", "--trainer.max_epochs=2")
    assert set(read) == {3, 6}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_expected_memory_against_what_is_really_kept(checkpointing):
    """All that autograd keeps for the backward pass, each storage once, within a third of the formula."""
    model = load_base("tests/models/tiny_gemma2", None, torch.float32, "eager")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        adapted.train()
    ids = list(range(3, 259))
    batch = PackingCollator(0)([[{"id": "a", "input_ids": ids, "supervised": [128, 256]}]])
    weights = {parameter.untyped_storage().data_ptr() for parameter in adapted.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_loss_sum(adapted, batch, 512)
    vocabulary = model.config.vocab_size
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    expected = training_bytes(adapted, 256, 256, 128, checkpointing, half=False) - 12 * trained
    logits = 16 * 128 * vocabulary
    measured = sum(size for size, _ in kept.values())
    layers = expected - logits
    assert layers > 0
    if not checkpointing:  # else the inside of a layer is not there yet
        assert abs(measured - (layers + 4 * 128 * vocabulary)) < measured / 3
    else:
        assert measured < layers + logits


def test_secrets_are_not_written_down():
    given = [
        "main.py",
        "--model.base=google/gemma-2-2b-it",
        "--model.special_tokens=[]",
        "--data.generation_batch_tokens=8192",
        "--max_tokens",
        "200",
        "--api_key_env",
        "MY_KEY",
        "--hub.token=hf_abc",
        "--api-key",
        "sk-1",
        "--trainer.logger={api_key: abc, project: x}",
        "--base_url=https://me:pw@host/v1",
        "HF_TOKEN=hf_def",
    ]
    hidden = redact_arguments(given)
    text = " ".join(hidden)
    assert not any(secret in text for secret in ("hf_abc", "sk-1", "abc,", "pw", "hf_def"))
    assert hidden[:8] == given[:8]
    assert "project: x" in text


def test_git_state(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert git_state() is None
    for command in (
        ("init", "-q"),
        ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"),
    ):
        subprocess.run(["git", *command], check=True)
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()
    assert git_state() == {"commit": commit, "changed": False}
    Path("new").touch()
    assert git_state() == {"commit": commit, "changed": True}


@pytest.mark.slow
def test_a_further_logger_beside_the_runs_folder(tmp_path):
    """The overlay for trackio, offline: what metrics.csv has is in its data base too."""
    pytest.importorskip("trackio")
    folder = f"--trainer.logger.init_args.save_dir={tmp_path / 'runs'}"
    overlays = ("--config", "configs/debug/tiny.yaml", "--config", "configs/logger/trackio.yaml")
    subprocess.run(
        [sys.executable, "main.py", "fit", *overlays, folder, *QUICK, "--data.validation=null"],
        env=os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        capture_output=True,
    )
    assert "train/loss" in next((tmp_path / "runs").rglob("metrics.csv")).read_text()
    with sqlite3.connect(tmp_path / "trackio" / "fc-lightning.db") as database:
        logged = [row[0] for row in database.execute("select metrics from metrics")]
    assert any("train/loss" in str(row) for row in logged)
