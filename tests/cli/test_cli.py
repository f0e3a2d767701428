"""The command line: help, configurations, environment, and mistakes that end in one clear message."""

from pathlib import Path

import pytest
import yaml
from tests.helpers.command_line import parsed
from transformers import AutoTokenizer

from fc_lightning.cli.defaults import CALLBACKS
from fc_lightning.cli.lightning_cli import main

TINY = "configs/debug/tiny.yaml"


def failed(capsys, *arguments: str) -> str:
    """What a run that must fail printed; it must exit with a code other than 0."""
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", TINY, *arguments])
    assert exit_.value.code not in (0, None)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "subcommand", ["fit", "validate", "test", "predict", "export", "audit", "mine", "think", "report", "chat"]
)
def test_help_of_each_subcommand(subcommand, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([subcommand, "--help"])
    assert exit_.value.code == 0
    assert "--model.base" in capsys.readouterr().out


def printed_config(capsys, *arguments: str) -> dict:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *arguments, "--print_config"])
    assert exit_.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def classes(config) -> list[str]:
    """Names of the callbacks of a configuration."""
    return [callback["class_path"].rsplit(".", 1)[-1] for callback in config["trainer"]["callbacks"]]


DEFAULTS = [callback["class_path"].rsplit(".", 1)[-1] for callback in CALLBACKS]


def test_several_configurations_are_merged(capsys, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model:\n  learning_rate: 0.5\ntrainer:\n  callbacks+:\n  - class_path: LearningRateMonitor\n")
    config = printed_config(capsys, "--config", TINY, "--config", str(overlay))
    assert config["model"]["learning_rate"] == 0.5
    assert config["model"]["base"] == "tests/models/tiny_gemma2"
    assert classes(config) == [*DEFAULTS, "LearningRateMonitor"]


def test_the_defaults_of_the_trainer(capsys, tmp_path):
    """A recipe without a word about them; the first file names the runs, also with another one after it."""
    trainer = printed_config(capsys, "--config", TINY, "--config", "configs/trainer/cpu.yaml")["trainer"]
    assert trainer["logger"]["class_path"] == "lightning.pytorch.loggers.CSVLogger"
    assert {"save_dir": "runs", "name": "tiny"}.items() <= trainer["logger"]["init_args"].items()
    assert trainer["use_distributed_sampler"] is False
    best, newest = (one["init_args"] for one in trainer["callbacks"][:2])
    assert (best["monitor"], best["mode"]) == ("val/exact_match", "max")
    assert trainer["callbacks"][1]["class_path"] == "fc_lightning.callbacks.LastCheckpoint"
    assert newest == {"every_n_train_steps": 50}


@pytest.mark.parametrize(
    ("overlay", "expected"),
    [
        ("callbacks: []", []),
        ("callbacks: [{class_path: LearningRateMonitor}]", ["LearningRateMonitor"]),
        (
            "callbacks+: [{class_path: LearningRateMonitor}, {class_path: LearningRateMonitor}]",
            [*DEFAULTS, "LearningRateMonitor", "LearningRateMonitor"],
        ),
    ],
)
def test_callbacks_can_be_dropped_replaced_and_appended(overlay, expected, tmp_path):
    file = tmp_path / "overlay.yaml"
    file.write_text(f"trainer:\n  {overlay}\n")
    assert classes(parsed("fit", "--config", TINY, "--config", str(file))) == expected
    flag, _, value = overlay.partition(": ")
    assert classes(parsed("fit", "--config", TINY, f"--trainer.{flag}={value}")) == expected


def test_environment_variables_set_keys(monkeypatch, capsys):
    monkeypatch.setenv("FC_FIT__MODEL__WEIGHT_DECAY", "0.25")
    assert printed_config(capsys, "--config", TINY)["model"]["weight_decay"] == 0.25


@pytest.mark.parametrize("path", sorted(str(path) for path in Path("configs").rglob("*.yaml")))
def test_every_shipped_configuration_is_valid(path, capsys):
    base = [] if set(Path(path).parts).isdisjoint({"trainer", "logger", "hardware"}) else ["--config", TINY]
    assert printed_config(capsys, *base, "--config", path)


def test_a_mistyped_key(capsys, tmp_path):
    assert "lerning_rate" in failed(capsys, "--model.lerning_rate=1")
    (tmp_path / "overlay.yaml").write_text("data:\n  pakking: true\n")
    assert "pakking" in failed(capsys, "--config", str(tmp_path / "overlay.yaml"))


def test_a_missing_configuration_file(capsys):
    assert "nowhere.yaml" in failed(capsys, "--config", "nowhere.yaml")


def test_a_missing_data_file(capsys):
    error = failed(capsys, "--data.train=[{path: nowhere.jsonl}]")
    assert error.strip().splitlines()[-1] == "error: nowhere.jsonl: file or folder not found"


def test_an_unknown_format(capsys):
    error = failed(capsys, "--data.train=[{path: data/quickstart/train.jsonl, format: hermess}]")
    assert "hermess" in error.splitlines()[-1]
    assert "hermes" in error.splitlines()[-1]


def test_a_missing_base(capsys):
    assert "./nowhere: folder not found (`model.base`)" in failed(capsys, "--model.base=./nowhere")


def test_a_tokenizer_that_is_not_gemmas_and_has_no_chat_template(capsys, tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE({"a": 0, "<eos>": 1}, []))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(tmp_path)
    config = AutoTokenizer.from_pretrained("tests/models/tiny_gemma2")
    assert config.chat_template is None
    (tmp_path / "config.json").write_text(Path("tests/models/tiny_gemma2/config.json").read_text())
    assert "has no chat template" in failed(capsys, f"--model.base={tmp_path}").splitlines()[-1]


def test_no_training_data(capsys):
    assert "data.train" in failed(capsys, "--data.train=[]").splitlines()[-1]


def test_half_precision_that_would_round_the_adapter(capsys):
    assert "bf16-mixed" in failed(capsys, "--trainer.precision=bf16-true").splitlines()[-1]


def test_shared_settings_are_given_once(capsys):
    data = printed_config(capsys, "--config", TINY)["data"]
    assert not {"base", "revision", "tool_format", "special_tokens", "supervise"} & set(data)


@pytest.mark.slow
def test_runs_without_a_logger_share_a_folder(tmp_path):
    """The second one replaces the configuration of the first, as it does its checkpoints."""
    data = "--data.train=[{path: data/quickstart/train.jsonl, limit: 2}]"
    for rate in (0.01, 0.02):
        main(
            [
                *("fit", "--config", "configs/debug/tiny.yaml", "--data.validation=null", data),
                *("--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}", f"--model.learning_rate={rate}"),
            ]
        )
        assert yaml.safe_load((tmp_path / "config.yaml").read_text())["model"]["learning_rate"] == rate
