"""A module and a data module of the user's own, by ``class_path``."""

import pytest
import torch
import yaml
from lightning import Trainer
from tests.helpers.user_classes import LouderModule

SMALL = (
    "--data.train=[{path: data/quickstart/train.jsonl, limit: 4}]",
    "--data.validation=[{path: data/quickstart/validation.jsonl, limit: 1}]",
    "--model.generation.max_new_tokens=2",
    "--data.packing=false",
)
MODULE = "--model.class_path=tests.helpers.user_classes.LouderModule"


def test_own_classes_train_export_and_load_again(run, tmp_path):
    """Their settings are keys, under `init_args` too; the run's configuration is enough for the next command."""
    overlay = tmp_path / "own.yaml"
    data = {"class_path": "tests.helpers.user_classes.ReversedDataModule", "init_args": {"reverse": True}}
    overlay.write_text(yaml.safe_dump({"data": data}))
    LouderModule.num_batches = 0
    folder = run("fit", f"--config={overlay}", *SMALL, MODULE, "--model.init_args.loudness=3")
    assert LouderModule.num_batches == 4
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["model"]["class_path"].endswith("LouderModule")
    assert (saved["model"]["loudness"], saved["data"]["reverse"]) == (3.0, True)

    checkpoint = folder / "checkpoints" / "last.ckpt"
    loaded = LouderModule.load_from_checkpoint(checkpoint)
    assert loaded.loudness == 3.0
    assert loaded.peft.r == saved["model"]["peft"]["init_args"]["r"]
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(weights[name], weight) for name, weight in loaded.trained_parameters().items())
    assert weights.keys() == loaded.trained_parameters().keys()

    output = tmp_path / "exported"
    run("export", f"--ckpt_path={checkpoint}", f"--output={output}", config=folder / "config.yaml")
    assert (output / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("lightning.LightningModule", "is not a subclass of fc_lightning.FunctionCallingModule"),
        ("tests.helpers.user_classes.Nothing", "cannot be imported: module"),
        ("nowhere.Module", "cannot be imported: No module named 'nowhere'"),
        ("Module", "cannot be imported: "),
    ],
)
def test_another_class_is_refused_in_one_line(run, capsys, path, line):
    with pytest.raises(SystemExit):
        run("fit", *SMALL, f"--model.class_path={path}")
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith(f"error: model.class_path: {path} {line}")


def test_a_mistyped_key_of_an_own_class_is_found(run, capsys):
    with pytest.raises(SystemExit):
        run("fit", *SMALL, MODULE, "--model.loudnes=3")
    assert "did you mean model.loudness?" in capsys.readouterr().err


def test_the_class_may_be_an_environment_variable(run, monkeypatch):
    monkeypatch.setenv("FC_FIT__MODEL__CLASS_PATH", "tests.helpers.user_classes.LouderModule")
    LouderModule.num_batches = 0
    run("fit", *SMALL, "--trainer.fast_dev_run=true")
    assert LouderModule.num_batches == 1


def test_a_checkpoint_of_the_command_line_is_loaded_without_arguments(run, tmp_path):
    """Adapter, preference and token weights included, as Lightning's own `load_from_checkpoint` makes the module."""
    from fc_lightning import FunctionCallingDataModule, FunctionCallingModule, Source

    folder = run("fit", *SMALL, "--model.token_weights.tag=2", "--model.lora_plus_ratio=4")
    module = FunctionCallingModule.load_from_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert (module.token_weights.tag, module.optimization.lora_plus_ratio) == (2.0, 4.0)
    data = FunctionCallingDataModule(
        base=module.base, validation=[Source(path="data/quickstart/validation.jsonl", limit=1)], packing=False
    )
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.validate(module, data, verbose=False)
    rows = (folder / "metrics.csv").read_text().splitlines()
    logged = [dict(zip(rows[0].split(","), row.split(","), strict=True)) for row in rows[1:]]
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(
        float([row["val/loss"] for row in logged if row["val/loss"]][-1])
    )
