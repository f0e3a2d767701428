"""The module and the data module from Python, with Lightning's own Trainer."""

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from peft import LoraConfig
from torch.utils.data import DataLoader

from fc_lightning import FunctionCallingDataModule, FunctionCallingModule, callbacks
from fc_lightning.callbacks import EMA, LastCheckpoint
from fc_lightning.data.sources import Source
from fc_lightning.training.optimization import SettingsError

TINY = "tests/models/tiny_gemma2"


class Mine(FunctionCallingModule):
    """A subclass that does something more."""

    seen = 0

    def training_step(self, batch, batch_idx):
        Mine.seen += 1
        return super().training_step(batch, batch_idx)


def data() -> FunctionCallingDataModule:
    return FunctionCallingDataModule(
        base=TINY,
        train=[Source(path="data/quickstart/train.jsonl", limit=4)],
        validation=[Source(path="data/quickstart/validation.jsonl", limit=1)],
        test=[Source(path="data/quickstart/validation.jsonl", limit=1)],
        packing=False,
    )


def trainer(folder, *callbacks, **settings) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    return Trainer(
        accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), max_epochs=1, **quiet, **settings
    )


def module(kind=FunctionCallingModule) -> FunctionCallingModule:
    return kind(base=TINY, peft=LoraConfig(r=4, target_modules=["q_proj"]), generation={"max_new_tokens": 2})


def test_fit_validate_test_predict_and_load(tmp_path):
    model, datamodule = module(Mine), data()
    first = trainer(tmp_path, LastCheckpoint(), EMA(0.5))
    first.fit(model, datamodule)
    assert Mine.seen == 4
    expected = first.validate(model, datamodule, verbose=False)[0]["val/loss"]
    (checkpoint,) = tmp_path.rglob("last.ckpt")

    loaded = Mine.load_from_checkpoint(checkpoint)
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    weights = {name: weight for name, weight in loaded.named_parameters() if weight.requires_grad}
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], weights[name]) for name in saved)
    assert trainer(tmp_path, logger=False).validate(loaded, datamodule, verbose=False)[0]["val/loss"] == expected
    assert "test/loss" in trainer(tmp_path, logger=False).test(loaded, datamodule, verbose=False)[0]
    assert trainer(tmp_path, logger=False).predict(loaded, datamodule)


def test_a_plain_loader_of_batches(tmp_path):
    """Without the data module: any iterable of batches trains."""
    datamodule = data()
    datamodule.setup("fit")
    batches = list(datamodule.train_dataloader())
    run = trainer(tmp_path, logger=False, enable_checkpointing=False)
    run.fit(module(), DataLoader(batches, batch_size=None))
    assert run.global_step == len(batches)


def our_callbacks(folder) -> list:
    """Every callback of ours, with the settings that it needs."""
    needed = {"ExtraLogger": {"logger": CSVLogger(folder / "extra")}}
    names = [name for name in callbacks.__all__ if name != "ProgressBar"]  # the bars of these trainers are off
    return [getattr(callbacks, name)(**needed.get(name, {})) for name in names]


@pytest.mark.parametrize("plain", [False, True], ids=["data module", "plain loader"])
def test_all_of_our_callbacks_with_a_plain_trainer(tmp_path, plain):
    run = trainer(tmp_path, *our_callbacks(tmp_path), logger=CSVLogger(tmp_path, name="run"))
    if plain:
        datamodule = data()
        datamodule.setup("fit")
        run.fit(module(), DataLoader(list(datamodule.train_dataloader()), batch_size=None))
    else:
        run.fit(module(), data())
        run.test(run.lightning_module, data(), verbose=False)
    folder = tmp_path / "run" / "version_0"
    for adapter in (folder / "adapter", folder / "checkpoints" / "last.adapter"):
        assert (adapter / "adapter_model.safetensors").is_file()
        assert (adapter / "chat_template.jinja").is_file()
    assert (folder / "predictions.jsonl").is_file() == (not plain)


@pytest.mark.parametrize("generation", [{"temprature": 0.5}, {"max_new_token": 4}])
def test_an_unknown_setting_of_generation_is_refused(generation):
    with pytest.raises(SettingsError, match=f"unknown key {next(iter(generation))}"):
        FunctionCallingModule(base=TINY, generation=generation)
