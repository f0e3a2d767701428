"""Values that cannot work, names that mean nothing, lists that replace, and paths where sources are meant."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonargparse import Namespace
from tests.helpers.command_line import parsed, parser

from fc_lightning.cli.checks import check_config_file, check_environment, check_folder, check_generation, check_values
from fc_lightning.cli.defaults import drop_impossible_defaults
from fc_lightning.cli.errors import ConfigurationError
from fc_lightning.cli.lightning_cli import main
from fc_lightning.cli.parser import join_paths
from fc_lightning.utils.atomic_files import DiskError

TINY = "configs/debug/tiny.yaml"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("data.batch_size", 0, "at least 1"),
        ("trainer.accumulate_grad_batches", 0, "at least 1"),
        ("model.learning_rate", -1.0, "at least 0"),
        ("model.warmup", 2.0, "between 0 and 1"),
        ("model.warmup", -1.0, "between 0 and 1"),
        ("trainer.val_check_interval", 0, "greater than 0"),
        ("trainer.check_val_every_n_epoch", 0, "at least 1"),
        ("model.learning_rate", float("inf"), "must be a finite number"),
        ("seed_everything", -4, "between 0 and 4294967295"),
        ("data.validation", 1.5, "fraction of the training data"),
        ("model.quantization", {"load_in_4bits": True}, "unknown key load_in_4bits; did you mean load_in_4bit?"),
        ("model.generation", {"temprature": 1.0}, "unknown key temprature; did you mean temperature?"),
        ("model.generation", {"max_new_tokens": 0}, "max_new_tokens: 0 must be an integer of at least 1"),
        ("model.generation", {"do_sample": True, "temperature": 0.0}, "temperature must be greater than 0"),
        ("model.generation", {"stop_strings": ["x"]}, "stop_strings is not supported"),
        ("model.generation", {"repetition_penalty": 0}, "repetition_penalty must be greater than 0"),
        ("model.generation", {"num_return_sequences": 2}, "num_return_sequences"),
        ("model.special_tokens", ["<a>", ""], "a tag must not be empty"),
        ("model.preference.weight", float("nan"), "at least 0"),
        ("data.audit_limits", {"duplicates": 0.1}, "unknown key duplicates; did you mean duplicate?"),
        ("data.audit_limits", {"duplicate": -1.0}, "between 0 and 1"),
        ("concurrency", 0, "at least 1"),
    ],
)
def test_a_value_that_cannot_work(key, value, reason):
    with pytest.raises(ConfigurationError) as error:
        check_values(Namespace({key: value}))
    assert str(error.value).startswith(f"{key}: ")
    assert reason in str(error.value)


def test_values_that_can_work():
    check_values(Namespace({"data.batch_size": 1, "model.warmup": 1.0, "model.learning_rate": 0.0}))
    check_values(Namespace({"data.validation": 0.1, "seed_everything": True, "trainer.val_check_interval": 0.25}))
    check_generation({"max_new_tokens": 8, "do_sample": True, "temperature": 0.7, "num_return_sequences": 4}, False)


def test_beams_are_not_constrained():
    check_generation({"num_beams": 2}, False)
    with pytest.raises(ConfigurationError, match="does not support beam search"):
        check_generation({"num_beams": 2}, True)


def test_a_wrong_value_ends_in_one_line(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", TINY, "--data.batch_size=0"])
    assert exit_.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: data.batch_size: 0 must be at least 1"


@pytest.mark.parametrize(
    ("variable", "reason"),
    [
        ("FC_FIT__MODEL__BSAE", "did you mean FC_FIT__MODEL__BASE?"),
        ("FC_MODEL__BASE", "did you mean FC_FIT__MODEL__BASE?"),
        ("FC_FIT__MODEL__PEFT__R", "set FC_FIT__MODEL__PEFT to a YAML mapping"),
    ],
)
def test_a_variable_that_sets_no_key(monkeypatch, variable, reason):
    known = {"model.base", "model.peft", "model.revision", "data.render"}
    monkeypatch.setenv("FC_FIT__DATA__RENDER", "verbatim")
    monkeypatch.setenv("FC_LIGHTNING_CACHE", "anywhere")
    check_environment(known, ["fit"])
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ConfigurationError, match=f"^{variable}: .*") as error:
        check_environment(known, ["fit"])
    assert reason in str(error.value)


def test_a_folder_that_cannot_be_written(tmp_path):
    check_folder(tmp_path / "runs" / "tiny")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="could not be written"):
        check_folder(tmp_path / "file" / "runs")


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("{class_path: peft.LoraConfig, init_args: {r: many}}", "LoraConfig.r: many is not an integer"),
        ("{class_path: peft.LoraConfig, init_args: {target_modules: {a: 1}}}", "{'a': 1} is not a list or text"),
    ],
)
def test_a_wrong_type_in_an_argument_of_a_class(given, value, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["fit", f"--model.peft={given}"])
    error = capsys.readouterr().err
    assert error.startswith("error: model.peft: LoraConfig.")
    assert error.endswith(f"{value}\n")


def test_a_list_of_a_later_file_replaces(tmp_path):
    """Of the same length, where jsonargparse by default merges item by item: the limit of 32 would stay."""
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "data:\n  train:\n    - path: other.jsonl\n"
        "trainer:\n  callbacks:\n    - {class_path: ModelCheckpoint, init_args: {monitor: val/loss}}\n"
    )
    later = tmp_path / "later.yaml"
    later.write_text("trainer:\n  callbacks:\n    - {class_path: ModelCheckpoint, init_args: {mode: max}}\n")
    config = parsed("fit", "--config", TINY, "--config", str(overlay), "--config", str(later))
    assert [(source.path, source.limit) for source in config.data.train] == [("other.jsonl", None)]
    (callback,) = config.trainer.callbacks
    assert (callback.init_args.monitor, callback.init_args.mode) == (None, "max")
    config = parsed("fit", "--config", TINY, "--data.train=[{path: other.jsonl}]")
    assert config.data.train[0].limit is None


@pytest.mark.parametrize(
    ("argument", "gone"),
    [
        ("--trainer.enable_checkpointing=false", {"ModelCheckpoint", "LastCheckpoint"}),
        ("--trainer.logger=false", {"LearningRateMonitor", "TensorBoard"}),
        (
            "--trainer.barebones=true",
            {"ModelCheckpoint", "LastCheckpoint", "LearningRateMonitor", "ProgressBar", "TensorBoard"},
        ),
        ("--trainer.fast_dev_run=true", set()),
    ],
)
def test_default_callbacks_that_contradict_a_setting_are_dropped(argument, gone):
    trainer = parsed("fit", "--config", TINY, argument).trainer
    before = [callback.class_path.rpartition(".")[2] for callback in trainer.callbacks]
    drop_impossible_defaults(trainer)
    after = [callback.class_path.rpartition(".")[2] for callback in trainer.callbacks]
    assert after == [name for name in before if name not in gone]


def test_a_callback_that_the_user_names_is_not_dropped():
    callback = "[{class_path: ModelCheckpoint, init_args: {monitor: val/loss}}]"
    trainer = parsed("fit", "--trainer.enable_checkpointing=false", f"--trainer.callbacks={callback}").trainer
    drop_impossible_defaults(trainer)
    assert len(trainer.callbacks) == 1


@pytest.mark.parametrize(
    ("arguments", "paths"),
    [
        (["--data.train", "a.jsonl"], ["a.jsonl"]),
        (["--data.train=a.jsonl"], ["a.jsonl"]),
        (["--data.train", "a.jsonl", "b.jsonl", "--model.warmup=0"], ["a.jsonl", "b.jsonl"]),
        (["--data.train", "[a.jsonl, {path: b.jsonl}]"], ["a.jsonl", "b.jsonl"]),
        (["--data.train", "{path: a.jsonl}"], ["a.jsonl"]),
        (["--data.train", "owner/dataset"], ["owner/dataset"]),
        (["--data.train+", "a.jsonl"], ["data/quickstart/train.jsonl", "a.jsonl"]),
    ],
)
def test_paths_are_sources(arguments, paths):
    config = parsed("fit", "--config", TINY, *arguments)
    assert [source.path for source in config.data.train] == paths


def test_paths_are_sources_in_a_file_too(tmp_path):
    file = tmp_path / "overlay.yaml"
    file.write_text("data:\n  train: a.jsonl\n  validation: 0.25\n  test: [b.jsonl, c.jsonl]\n")
    data = parsed("fit", "--config", TINY, "--config", str(file)).data
    assert [source.path for source in data.train] == ["a.jsonl"]
    assert data.validation == 0.25
    assert [source.path for source in data.test] == ["b.jsonl", "c.jsonl"]
    assert parsed("fit", "--config", TINY, "--data.validation=null").data.validation is None


def test_only_paths_after_a_key_of_sources_are_joined():
    arguments = ["fit", "--config", "a.yaml", "--data.train", "x", "y", "--trainer.devices", "2", "--data.test", "z"]
    joined = ["fit", "--config", "a.yaml", "--data.train", "[x, y]", "--trainer.devices", "2", "--data.test", "z"]
    assert join_paths(arguments) == joined
    assert join_paths(["--data.train"]) == ["--data.train"]


def test_the_module_runs_as_a_program():
    command = [sys.executable, "-m", "fc_lightning", "--version"]
    assert subprocess.check_output(command, cwd=Path.cwd(), text=True).strip()


def test_a_default_that_is_a_member_of_an_enum_is_written_as_its_value():
    """Lightning's Timer has one, which YAML cannot represent."""
    timer = "--trainer.callbacks=[{class_path: lightning.pytorch.callbacks.Timer}]"
    text = parser().dump(parser().parse_args(["fit", "--config", TINY, timer]))
    (callback,) = yaml.safe_load(text)["fit"]["trainer"]["callbacks"]
    assert callback["init_args"]["interval"] == "step"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"model: {base: b\xe4se}", "must be a text file in UTF-8"),
        (b"", "must be a mapping with the groups `model`, `data` and `trainer`"),
        (b"- model", "must be a mapping with the groups `model`, `data` and `trainer`"),
        (b"model:\n  base: x\ntrainer: [1]", "line 3: trainer must be a mapping of keys"),
        (b"data:\nmodel: {}", "line 1: data must be a mapping of keys"),
        (b"model:\n  warmup: 0.1\n  warmup: 0.2", "line 3: duplicate key warmup"),
        (b"data:\n  train:\n    - {path: a, path: b}", "line 3: duplicate key path"),
    ],
)
def test_a_configuration_file_that_cannot_work(tmp_path, capsys, content, reason):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", str(file)])
    assert exit_.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {file}")
    assert reason in line


def test_configuration_files_that_can_work(tmp_path):
    """With anchors that double their size ten times, and with a byte order mark."""
    file = tmp_path / "recipe.yaml"
    doubled = [f"k{number}: &a{number} [*a{number - 1}, *a{number - 1}]" for number in range(1, 40)]
    file.write_text("\n".join(["k0: &a0 {x: 1}", *doubled]))
    check_config_file(file)
    file.write_bytes(b"\xef\xbb\xbfmodel:\r\n  warmup: 0.1\r\n")
    check_config_file(file)
    check_config_file(tmp_path / "missing.yaml")
    with pytest.raises(ConfigurationError, match="must be a file, not a folder"):
        check_config_file(tmp_path)


def test_strategies_that_start_processes_from_memory_end_in_one_line(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", TINY, "--trainer.strategy=ddp_spawn"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: trainer.strategy: ddp_spawn, ddp_fork, ddp_notebook is not supported")
