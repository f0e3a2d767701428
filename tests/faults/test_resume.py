"""A run goes on from any checkpoint as if it had never been interrupted."""

import csv
import json
import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.helpers.checkpoints import FULL, events, same, state_of
from tests.helpers.resume_runs import DROPOUT, TINY, fit

from fc_lightning.callbacks import Resumable
from fc_lightning.cli.lightning_cli import main
from fc_lightning.training.checkpoint_io import CheckpointError

SETTINGS = {
    "packed": ["--data.max_length=512", "--trainer.val_check_interval=3"],
    "unpacked": ["--data.packing=false", "--trainer.val_check_interval=5", "--trainer.accumulate_grad_batches=3"],
    "steps": ["--data.max_length=512", "--trainer.max_epochs=-1", "--trainer.max_steps=5"],
    "augmented": [
        *("--data.max_length=512", "--trainer.val_check_interval=3", "--model.token_weights.argument_value=3"),
        "--data.augmentation={shuffle_tools: 0.5, distractors: 0.5, drop_tool: 0.2, mask_names: 0.5}",
    ],
    "no validation": ["--data.max_length=512", "--data.validation=null"],
    "streaming": [
        *("--data.max_length=512", "--data.streaming=true", "--data.shuffle_buffer=8", "--trainer.max_epochs=-1"),
        *("--trainer.max_steps=4", "--trainer.val_check_interval=3"),
    ],
}


@pytest.mark.parametrize(
    "kind", ["packed", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SETTINGS if kind != "packed")]
)
def test_every_moment_of_a_run_can_be_gone_on_from(tmp_path, kind):
    whole = fit(tmp_path, "whole", *SETTINGS[kind], save=True)
    expected = events(tmp_path / "whole")
    saved = json.loads((tmp_path / "saved" / "saved.json").read_text())
    wanted = list(saved) if FULL else random.Random(kind).sample(list(saved), 3)
    for name in wanted:
        last = fit(tmp_path, name, *SETTINGS[kind], f"--ckpt_path={tmp_path / 'saved' / name}")
        assert events(tmp_path / name) == expected[saved[name] :], name
        if saved[name] < len(expected):
            assert same(state_of(last), state_of(whole)), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["packed", "streaming"])
def test_prefetching_and_workers_do_not_matter(tmp_path, kind):
    workers = ["--data.num_workers=2"]
    whole = fit(tmp_path, "whole", *SETTINGS[kind], *workers, save=True)
    expected = events(tmp_path / "whole")
    saved = json.loads((tmp_path / "saved" / "saved.json").read_text())
    # A stream is dealt out to workers, and goes on with as many.
    others = [workers] if kind == "streaming" else [["--data.num_workers=0"], ["--data.num_workers=3"]]
    names = [name for name in saved if "batch-end" in name]
    for other, name in zip(others, random.Random(kind).sample(names[2:], len(others)), strict=True):
        last = fit(tmp_path, name, *SETTINGS[kind], *other, f"--ckpt_path={tmp_path / 'saved' / name}")
        assert events(tmp_path / name) == expected[saved[name] :], name
        assert same(state_of(last), state_of(whole)), name


def on_two_ranks(folder: Path, jobs: list) -> None:
    """Runs `fit` above with each list of arguments, on two ranks, in one go."""
    (folder / "jobs.json").write_text(json.dumps([[str(folder), *job] for job in jobs]))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command = [*launch, "-m", "tests.helpers.two_ranks", str(folder / "jobs.json")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1500)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETTINGS if FULL else ["packed", "streaming", "augmented"])
def test_two_ranks_go_on_from_every_moment(tmp_path, kind):
    on_two_ranks(tmp_path, [["whole", [*SETTINGS[kind], "--data.max_length=256"], True, 0 if FULL else 3]])
    saved = json.loads((tmp_path / "saved" / "saved.json").read_text())
    resumed = json.loads((tmp_path / "chosen.json").read_text())
    assert len(resumed) == (len(saved) if FULL else 3)
    for name in resumed:
        for rank in range(2):
            assert events(tmp_path / name, rank) == events(tmp_path / "whole", rank)[saved[name] :], name
        if events(tmp_path / name):
            assert same(state_of(tmp_path / name / "last.ckpt"), state_of(tmp_path / "whole" / "last.ckpt")), name


@pytest.mark.slow
def test_another_number_of_ranks_takes_the_same_steps(tmp_path, caplog):
    """From two ranks to one and from one to two: the rows of each step are those of one process, and so is the loss."""
    plain = ["--data.packing=false", "--data.validation=null", f"--model.peft={DROPOUT.replace('0.2', '0.0')}"]
    fit(tmp_path, "one", *plain, save=True)
    expected = events(tmp_path / "one")
    (tmp_path / "saved").rename(tmp_path / "saved_by_one")
    at = "003-batch-end.ckpt"  # behind the first step, two micro-batches
    go_on = [*plain, f"--ckpt_path={tmp_path / 'saved_by_one' / at}"]
    single = [*plain, "--trainer.accumulate_grad_batches=1"]
    on_two_ranks(tmp_path, [["from_one", go_on, False, 0], ["two", single, True, 0]])
    before = "003-batch-end.ckpt"  # behind two steps of one micro-batch each
    caplog.set_level("INFO")
    fit(tmp_path, "from_two", *single, f"--ckpt_path={tmp_path / 'saved' / before}")
    assert "2 steps ran on 2 ranks with 1 micro-batches each; the run continues with 1 ranks and 2 each" in caplog.text
    pairs = [events(tmp_path / "from_one", rank) for rank in range(2)]
    mixed = [event for pair in zip(*pairs, strict=True) for event in pair]
    for found, tail in ((mixed, expected[2:]), (events(tmp_path / "from_two"), expected[4:])):
        assert [event["ids"] for event in found] == [event["ids"] for event in tail]
        losses = [[float.fromhex(event["loss"]) for event in one[1::2]] for one in (found, tail)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def metrics(run: Path) -> list[dict]:
    """The logged rows, without what the clock says."""
    with (run / "metrics.csv").open() as file:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    return [{name: value for name, value in row.items() if "second" not in name} for row in rows]


def train(folder: Path, *callbacks: dict) -> int:
    """Runs the same command in a process of its own; returns how it ended."""
    saving = {"every_n_train_steps": 1, "save_top_k": 2, "monitor": "step", "mode": "max", "save_last": True}
    ours = [
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saving},
        {"class_path": "fc_lightning.callbacks.SaveAdapter"},
        {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"},
    ]
    arguments = [
        *("fit", "--config", TINY, "--ckpt_path=last", f"--trainer.logger.init_args.save_dir={folder}"),
        f"--trainer.callbacks={json.dumps([*callbacks, *ours])}",
        "--data.train=[{path: data/quickstart/train.jsonl, limit: 24}]",
        "--data.validation=[{path: data/quickstart/validation.jsonl, limit: 1}]",
        *("--data.packing=false", f"--model.peft={DROPOUT}", "--model.generation.max_new_tokens=2"),
        *("--trainer.enable_progress_bar=false", "--trainer.val_check_interval=7", "--trainer.max_epochs=2"),
    ]
    child = multiprocessing.get_context("fork").Process(target=main, args=(arguments,))
    child.start()
    child.join()
    return child.exitcode


@pytest.mark.slow
def test_the_same_command_again_and_again_ends_with_the_same_adapter(tmp_path):
    kills = 10 if FULL else 2
    assert train(tmp_path / "whole") == 0
    rng = random.Random(0)
    for _ in range(kills):
        killer = {"after": rng.randint(1, 40 // kills), "saving": rng.random() < 0.5}
        killed = train(tmp_path / "again", {"class_path": "tests.helpers.checkpoints.Killer", "init_args": killer})
        assert killed == -signal.SIGKILL
    assert train(tmp_path / "again") == 0
    whole, again = (tmp_path / name / "tiny" / "version_0" for name in ("whole", "again"))
    assert [path.name for path in again.parent.iterdir()] == ["version_0"]
    for name in ("adapter/adapter_model.safetensors", "checkpoints/last.adapter/adapter_model.safetensors"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()
    assert metrics(again) == metrics(whole)
    assert {path.name for path in (again / "checkpoints").iterdir()} == {
        path.name for path in (whole / "checkpoints").iterdir()
    }
    before = (again / "adapter" / "adapter_model.safetensors").read_bytes()
    assert train(tmp_path / "again") == 0  # it is finished, and stays so
    assert (again / "adapter" / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("--data.batch_size=2", "in a different order and cannot be resumed: `data.batch_size` was 1, now 2"),
        (
            "--data.train=[{path: data/quickstart/train.jsonl, limit: 13}]",
            "cannot be resumed: `data.train` was sha256 ",
        ),
        ("--trainer.accumulate_grad_batches=4", "set `--trainer.accumulate_grad_batches 2`"),
        ("--model.base=BASE", "was trained on a different base (tests/models/tiny_gemma2) than `model.base` "),
    ],
)
def test_what_a_run_cannot_go_on_with(tmp_path, capsys, change, said):
    """Each in one sentence; the other base has the same shapes and tokens, and other weights."""
    base = tmp_path / "base"
    shutil.copytree("tests/models/tiny_gemma2", base)
    weights = load_file(base / "model.safetensors")
    name = "model.layers.1.input_layernorm.weight"
    save_file({**weights, name: weights[name] + 0.5}, base / "model.safetensors", {"format": "pt"})
    last = fit(tmp_path, "first", "--data.validation=null", "--trainer.max_steps=1")
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, "second", "--data.validation=null", f"--ckpt_path={last}", change.replace("BASE", str(base)))
    assert caught.value.code == 1
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_last_passes_over_a_broken_checkpoint_and_waits_for_nobody(tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    arguments = ["--data.validation=null", "--ckpt_path=last"]
    fit(tmp_path, "run", *arguments, "--trainer.max_epochs=1")
    assert "no checkpoint in" in caplog.text
    broken = tmp_path / "run" / "last.ckpt"
    broken.write_bytes(broken.read_bytes()[:-100])
    (other,) = (path for path in (tmp_path / "run").iterdir() if "epoch=0" in path.name)
    fit(tmp_path, "run", *arguments)
    assert f"{broken}: cannot be read as a checkpoint" in caplog.text
    assert f"resuming from {other}" in caplog.text
    with pytest.raises(SystemExit):
        fit(tmp_path, "third", f"--ckpt_path={tmp_path / 'nowhere.ckpt'}")
    assert "nowhere.ckpt: checkpoint not found (`--ckpt_path`)" in capsys.readouterr().err.splitlines()[-1]


def test_two_processes_do_not_train_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("fc_lightning.callbacks.resumable._LOCK_TIMEOUT", 0.1)
    first, second = Resumable(), Resumable()
    first.lock_folder(tmp_path)
    with pytest.raises(CheckpointError, match="another process is training in this folder"):
        second.lock_folder(tmp_path)
    first.teardown(None, None, "fit")
    Resumable().lock_folder(tmp_path)
