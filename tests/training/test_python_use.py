"""The module and the data module from Python, with Lightning's own Trainer."""

import torch
from lightning import Trainer
from peft import LoraConfig
from torch.utils.data import DataLoader

from fc_lightning import FunctionCallingDataModule, FunctionCallingModule
from fc_lightning.callbacks import EMA, LastCheckpoint
from fc_lightning.data.sources import Source

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


def test_a_checkpoint_of_the_command_line_is_loaded_without_arguments(run):
    quick = ("--data.train=[{path: data/quickstart/train.jsonl, limit: 2}]", "--data.validation=null")
    folder = run("fit", *quick, "--model.token_weights.answer=2", "--trainer.max_steps=1")
    (checkpoint,) = folder.rglob("last.ckpt")
    loaded = FunctionCallingModule.load_from_checkpoint(checkpoint)
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    weights = {name: weight for name, weight in loaded.named_parameters() if weight.requires_grad}
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], weights[name]) for name in saved)


def test_a_plain_loader_of_batches(tmp_path):
    """Without the data module: any iterable of batches trains."""
    datamodule = data()
    datamodule.setup("fit")
    batches = list(datamodule.train_dataloader())
    run = trainer(tmp_path, logger=False, enable_checkpointing=False)
    run.fit(module(), DataLoader(batches, batch_size=None))
    assert run.global_step == len(batches)
