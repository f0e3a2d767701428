"""What a run says of itself: before it, while it runs, after it, and in its folder."""

import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning_utilities.core.imports import RequirementCache
from peft import LoraConfig, get_peft_model

from fc_lightning.callbacks import ProgressBar
from fc_lightning.callbacks.summary import trainable_line
from fc_lightning.cli.lightning_cli import main
from fc_lightning.models.flops import parameter_counts
from fc_lightning.models.loading import load_base
from fc_lightning.utils.environment import git_state
from fc_lightning.utils.secrets import redact_arguments

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
    assert "8 rows, 8 micro-batches" in before
    assert "training:   4 optimizer steps of 2 micro-batches" in before
    assert re.search(r"memory:     about \d\.\d GB peak expected in this process: \d\.\d GB in use now", before)
    assert f"run:        {folder}" in before
    assert "test:" not in before
    assert re.search(r"evaluation: about \d+ s each, measured on 7 of 7 prompts", before)
    assert "before:" not in before  # of a part of the validation
    assert re.search(r"tokens, [\d,]+ tokens/s", after)
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
    monkeypatch.setattr(ProgressBar, "_read_values", lambda self, trainer: read.append(trainer.global_step))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr(ProgressBar, "is_enabled", property(lambda self: True))
    run("fit", *QUICK, "--data.validation=null", "--trainer.log_every_n_steps=3", "--trainer.max_epochs=2")
    assert set(read) == {3, 6}


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


def logged_by(name, folder):
    """What a logger has on disk, as text: metrics, settings and the table of samples."""
    if name == "wandb":
        files = [*folder.rglob("*.wandb"), *folder.rglob("*.table.json")]
        return "".join(file.read_bytes().decode(errors="replace") for file in files)
    file = folder / ("trackio/fc-lightning.db" if name == "trackio" else "mlflow.db")
    with sqlite3.connect(file) as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        cells = [cell for table in tables for row in database.execute(f'select * from "{table}"') for cell in row]
    texts = [cell.decode(errors="replace") if isinstance(cell, bytes) else str(cell) for cell in cells]
    return "".join([*texts, *(file.read_text() for file in folder.rglob("samples.json"))])


@pytest.mark.parametrize("name", ["trackio", "mlflow", "wandb"])
def test_a_logger_that_is_not_installed_is_named(monkeypatch, capsys, name):
    if name == "trackio":
        monkeypatch.setattr("fc_lightning.training.loggers.find_spec", lambda _: None)
    else:
        newer = RequirementCache(f"{name}>=9999")
        monkeypatch.setattr(f"lightning.pytorch.loggers.{name}._{name.upper()}_AVAILABLE", newer)
    with pytest.raises(SystemExit):
        main(["fit", "--config", "configs/debug/tiny.yaml", "--config", f"configs/logger/{name}.yaml"])
    said = f'error: trainer.callbacks: {name} is not installed: pip install "fc-lightning[{name}]"\n'
    assert capsys.readouterr().err.endswith(said)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trackio", "mlflow", "wandb"])
def test_a_further_logger_beside_the_runs_folder(tmp_path, name):
    """The overlays, offline: metrics, all settings and the table of samples are there, and the keys are not."""
    pytest.importorskip(name)
    folder = f"--trainer.logger.init_args.save_dir={tmp_path / 'runs'}"
    overlays = ("--config", str(Path("configs/debug/tiny.yaml").resolve()))
    overlays += ("--config", str(Path(f"configs/logger/{name}.yaml").resolve()))
    sources = [
        f"--data.{split}=[{{path: {Path('data/quickstart').resolve()}/{split}.jsonl, limit: 2}}]"
        for split in ("train", "validation")
    ]
    settings = {"TRACKIO_DIR": str(tmp_path / "trackio"), "WANDB_MODE": "offline"}
    secrets = {"WANDB_API_KEY": "0123456789abcdefplantedwandb0123456789abcdef", "HF_TOKEN": "hf_PlantedTokenOfTheHub"}
    base = f"--model.base={Path('tests/models/tiny_gemma2').resolve()}"
    done = subprocess.run(
        [sys.executable, str(Path("main.py").resolve()), "fit", *overlays, folder, *sources, base],
        env=os.environ | settings | secrets | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "train/loss" in next((tmp_path / "runs").rglob("metrics.csv")).read_text()
    logged = logged_by(name, tmp_path)
    for said in ("train/loss", "val/exact_match", "lora_alpha", "generation_batch_tokens", "unterminated turn"):
        assert said in logged, said
    for secret in secrets.values():
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_no_next_command_names_a_checkpoint_that_does_not_exist(run, capsys):
    run("fit", *QUICK, "--trainer.max_steps=0")
    assert "next:" not in capsys.readouterr().out


def test_paths_in_the_next_commands_can_be_pasted(run, capsys):
    run("fit", *QUICK, "--trainer.logger.init_args.name=a $(b)", "--data.validation=null")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next:")]
    words = shlex.split(line)
    config, checkpoint = (Path(words[words.index(key) + 1]) for key in ("--config", "--ckpt_path"))
    assert config.is_file()
    assert checkpoint.is_file()
