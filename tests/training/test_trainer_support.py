"""Settings and callbacks of Lightning: each does what it should, or is rejected in one line before training."""

import csv
import json
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.strategies import ModelParallelStrategy
from tests.helpers.checkpoints import Killed

from fc_lightning.training.optimization import SettingsError
from fc_lightning.training.trainer_support import (
    CALLBACKS,
    SETTINGS,
    UNSUPPORTED_CALLBACKS,
    UNSUPPORTED_SETTINGS,
    check_trainer,
)

SMALL = (
    "--data.train=[{path: data/quickstart/train.jsonl, limit: 6}]",
    "--data.validation=[{path: data/quickstart/validation.jsonl, limit: 1}]",
    "--model.generation.max_new_tokens=2",
    "--data.packing=false",
)
ARGUMENTS = {
    "StochasticWeightAveraging": {"swa_lrs": 0.1},
    "GradientAccumulationScheduler": {"scheduling": {0: 2}},
    "ModelPruning": {"pruning_fn": "l1_unstructured"},
}
STEPS = 3  # of a run with the settings above and nothing else


def callback(name: str, **arguments) -> str:
    path = name if "." in name else f"lightning.pytorch.callbacks.{name}"
    return f"--trainer.callbacks+={json.dumps({'class_path': path, 'init_args': arguments})}"


@pytest.mark.parametrize(
    "given",
    [{}, {"tensor_parallel_size": 1}, {"tensor_parallel_size": 2, "save_distributed_checkpoint": False}],
    ids=str,
)
def test_sharding_that_is_not_by_data_is_refused(given):
    trainer = Trainer(accelerator="cpu", strategy=ModelParallelStrategy(**given), logger=False)
    with pytest.raises(SettingsError, match="needs `tensor_parallel_size: 1`"):
        check_trainer(trainer)


@pytest.mark.parametrize("name", UNSUPPORTED_CALLBACKS)
def test_refused_callbacks(name):
    trainer = Trainer(
        accelerator="cpu", callbacks=[getattr(lightning_callbacks, name)(**ARGUMENTS.get(name, {}))], logger=False
    )
    with pytest.raises(SettingsError) as caught:
        check_trainer(trainer)
    assert str(caught.value) == f"trainer.callbacks: {name} is not supported: {UNSUPPORTED_CALLBACKS[name]}"


@pytest.mark.parametrize(
    "settings",
    [
        {"overfit_batches": 2},
        {"overfit_batches": 0.5},
        {"strategy": "ddp_spawn", "devices": 2},
        {"strategy": "ddp_fork", "devices": 2},
        {"strategy": "ddp_notebook", "devices": 2},
    ],
    ids=str,
)
def test_refused_settings(settings):
    named = str(settings.get("strategy", "overfit_batches"))
    ((name, reason),) = ((name, reason) for name, reason in UNSUPPORTED_SETTINGS.items() if named in name)
    with pytest.raises(SettingsError) as caught:
        check_trainer(Trainer(accelerator="cpu", logger=False, **settings))
    assert str(caught.value) == f"trainer.{name} is not supported: {reason}"


def test_a_callback_derived_from_a_refused_one_is_refused():
    class Mine(lightning_callbacks.EMAWeightAveraging):
        pass

    with pytest.raises(SettingsError, match="EMAWeightAveraging is not supported"):
        check_trainer(Trainer(accelerator="cpu", logger=False, callbacks=[Mine()]))


def test_what_is_refused_is_one_line_of_the_command_line(run, capsys):
    with pytest.raises(SystemExit):
        run("fit", *SMALL, callback("EMAWeightAveraging"))
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: trainer.callbacks: EMAWeightAveraging is not")
    with pytest.raises(SystemExit):
        run("fit", *SMALL, "--trainer.val_check_interval=80")
    assert "`val_check_interval` (80) must be less than" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit):
        run("fit", *SMALL, callback("EarlyStopping", monitor="val/no_such"))
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: trainer: Early stopping conditioned on metric `val/no_such` which is not available")


def last_step(folder) -> int:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


def logged(folder) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def num_validations(folder) -> int:
    return sum(bool(row.get("val/loss")) for row in logged(folder))


def reached(steps: int, validations: int = 1):
    def check(folder):
        assert last_step(folder) == steps
        assert num_validations(folder) == validations

    return check


def logs(column: str):
    """The run has reached its end, and has logged a value whose name contains this."""

    def check(folder):
        reached(STEPS)(folder)
        assert any(value for row in logged(folder) for name, value in row.items() if column in name)

    return check


def writes(*patterns: str):
    """The run has reached its end, and has written files of these names, below the folder of all runs or next to it."""

    def check(folder):
        reached(STEPS)(folder)
        for pattern in patterns:
            assert list(folder.parents[2].rglob(pattern)), pattern

    return check


def nothing_written(folder):
    nothing_saved(folder)
    assert not [name for name in ("adapter", "predictions.jsonl", "report.html") if Path(name).exists()]


def nothing_saved(folder):
    assert not list(folder.rglob("*.ckpt"))


def saved_in_the_root(folder):
    (last,) = folder.rglob("checkpoints/last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == STEPS


WORKS = {
    "fast_dev_run": (["--trainer.fast_dev_run=true"], nothing_written),
    "limit_train_batches, limit_val_batches": (
        ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"],
        reached(1),
    ),
    "limit_train_batches as a share": (["--trainer.limit_train_batches=0.7"], reached(2)),
    "val_check_interval": (["--trainer.val_check_interval=2"], reached(STEPS, 3)),
    "val_check_interval as a share": (["--trainer.val_check_interval=0.5"], reached(STEPS, 2)),
    "val_check_interval over epochs": (
        ["--trainer.val_check_interval=8", "--trainer.check_val_every_n_epoch=null", "--trainer.max_epochs=3"],
        reached(3 * STEPS, 2),
    ),
    "max_time": (["--trainer.max_time=00:00:00:00"], nothing_saved),
    "profiler": (
        [
            "--trainer.profiler={class_path: lightning.pytorch.profilers.SimpleProfiler, "
            "init_args: {dirpath: ROOT, filename: profile}}"
        ],
        writes("fit-profile.txt"),
    ),
    "barebones": (
        ["--trainer.barebones=true", "--trainer.log_every_n_steps=null", "--trainer.default_root_dir=ROOT"],
        nothing_saved,
    ),
    "logger: false": (["--trainer.logger=false", "--trainer.default_root_dir=ROOT"], saved_in_the_root),
    "enable_progress_bar: false": (["--trainer.enable_progress_bar=false"], reached(STEPS)),
    "detect_anomaly": (["--trainer.detect_anomaly=true"], reached(STEPS)),
    "deterministic": (["--trainer.deterministic=true"], reached(STEPS)),
    "enable_checkpointing: false": (["--trainer.enable_checkpointing=false"], nothing_saved),
    "sync_batchnorm": (["--trainer.sync_batchnorm=true"], reached(STEPS)),
    "reload_dataloaders_every_n_epochs": (
        ["--trainer.reload_dataloaders_every_n_epochs=1", "--trainer.max_epochs=2"],
        reached(2 * STEPS, 2),
    ),
    "plugins": (
        ["--trainer.plugins=[{class_path: lightning.pytorch.plugins.io.AsyncCheckpointIO}]"],
        reached(STEPS),
    ),
    "EarlyStopping": (
        [callback("EarlyStopping", monitor="val/loss", patience=0, min_delta=99), "--trainer.max_epochs=9"],
        reached(2 * STEPS, 2),
    ),
    "ModelCheckpoint": (
        [
            callback("ModelCheckpoint", monitor="val/loss", filename="by-loss"),
            callback("ModelCheckpoint", monitor="train/loss", filename="by-train-loss"),
        ],
        writes("by-loss.ckpt", "by-train-loss.ckpt"),
    ),
    "Timer": ([callback("Timer", duration="00:01:00:00", interval="step")], reached(STEPS)),
    "RichProgressBar": (
        [
            "--trainer.callbacks=[{class_path: fc_lightning.callbacks.LastCheckpoint}]",
            callback("RichProgressBar"),
        ],
        reached(STEPS),
    ),
    "RichModelSummary": ([callback("RichModelSummary")], reached(STEPS)),
    "Timer that is over": ([callback("Timer", duration="00:00:00:00", interval="step")], nothing_saved),
    "DeviceStatsMonitor": ([callback("DeviceStatsMonitor", cpu_stats=True)], logs("DeviceStatsMonitor.")),
    "LearningRateMonitor": ([], logs("lr")),
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", WORKS)
def test_what_works(run, name, tmp_path):
    arguments, check = WORKS[name]
    check(run("fit", *SMALL, *(argument.replace("ROOT", str(tmp_path)) for argument in arguments)))


@pytest.mark.nightly
def test_a_run_without_a_logger_can_be_repeated(run, tmp_path):
    for _ in range(2):
        run("fit", *SMALL, "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}")
    saved_in_the_root(tmp_path)


@pytest.mark.nightly
def test_a_checkpoint_of_an_exception(run, tmp_path):
    """It has the state at the end of the last step, and the next run resumes there of its own accord."""
    saver = callback("OnExceptionCheckpoint", dirpath=str(tmp_path / "saved"))
    with pytest.raises(Killed):
        run("fit", *SMALL, saver, callback("tests.helpers.checkpoints.RaiseAfter", steps=2))
    (saved,) = (tmp_path / "saved").glob("*.ckpt")
    assert torch.load(saved, weights_only=True)["global_step"] == 2
    resumed = run("fit", *SMALL, saver)
    assert last_step(resumed) == STEPS
    steps = [int(row["step"]) for row in logged(resumed) if row.get("train/loss")]
    assert steps == list(range(2, STEPS))


def test_every_claim_has_a_test():
    names = {supported.name for supported in (*SETTINGS, *CALLBACKS)}
    elsewhere = {"num_nodes", "strategy: ddp", "OnExceptionCheckpoint"}  # also in tests/ddp/test_trainer_settings.py
    assert names - elsewhere <= set(WORKS)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"devices": 1000}, "trainer.devices: 1000 processes are too many"), ({"num_nodes": 2}, "trainer.num_nodes: ")],
)
def test_processes_that_cannot_come_are_not_waited_for(settings, reason, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    trainer = Trainer(accelerator="cpu", logger=False, strategy="ddp", **settings)
    with pytest.raises(SettingsError, match=reason):
        check_trainer(trainer)


def test_machines_that_say_where_they_are(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    check_trainer(Trainer(accelerator="cpu", logger=False, strategy="ddp", num_nodes=2))


def test_flex_attention_is_not_trained_on_a_cpu(run, capsys):
    with pytest.raises(SystemExit) as exit_:
        run("fit", *SMALL, "--model.attn_implementation=flex_attention")
    assert exit_.value.code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "error: model.attn_implementation: flex_attention does not support training on a CPU; use `auto`"
