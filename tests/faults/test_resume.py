"""A run goes on from any checkpoint as if it had never been interrupted."""

import json
import random
from pathlib import Path

import pytest
from tests.faults.checkpoints import FULL, events, same, state_of

from fc_lightning.cli import main

TINY = "configs/debug/tiny.yaml"
DROPOUT = "{class_path: peft.LoraConfig, init_args: {r: 4, lora_dropout: 0.2, target_modules: [q_proj, v_proj]}}"
SETTINGS = {
    "packed": ["--data.max_length=512", "--trainer.val_check_interval=3"],
    "unpacked": ["--data.packing=false", "--trainer.val_check_interval=5", "--trainer.accumulate_grad_batches=3"],
    "steps": ["--data.max_length=512", "--trainer.max_epochs=-1", "--trainer.max_steps=5"],
    "no validation": ["--data.max_length=512", "--data.validation=null"],
    "streaming": [
        *("--data.max_length=512", "--data.streaming=true", "--data.shuffle_buffer=8", "--trainer.max_epochs=-1"),
        *("--trainer.max_steps=4", "--trainer.val_check_interval=3"),
    ],
}


def fit(folder: Path, name: str, *arguments: str, save: bool = False) -> Path:
    """Runs the tiny recipe with a recorder; the last checkpoint is ``NAME.ckpt``."""
    recorder = {"class_path": "tests.faults.checkpoints.Recorder", "init_args": {"file": str(folder / name)}}
    if save:
        recorder["init_args"]["folder"] = str(folder / "saved")
    last = {"dirpath": str(folder / name), "save_last": True, "save_on_train_epoch_end": True}
    model_checkpoint = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": last}
    main(
        [
            *("fit", "--config", TINY, f"--trainer.callbacks={json.dumps([recorder, model_checkpoint])}"),
            f"--trainer.logger.init_args.save_dir={folder / 'runs' / name}",
            "--data.train=[{path: data/quickstart/train.jsonl, limit: 14}]",
            "--data.validation=[{path: data/quickstart/validation.jsonl, limit: 2}]",
            *("--trainer.max_epochs=2", f"--model.peft={DROPOUT}", "--model.generation.max_new_tokens=2"),
            *("--trainer.enable_progress_bar=false", *arguments),
        ]
    )
    return folder / name / "last.ckpt"


@pytest.mark.parametrize("kind", SETTINGS)
def test_every_moment_of_a_run_can_be_gone_on_from(tmp_path, kind):
    whole = fit(tmp_path, "whole", *SETTINGS[kind], save=True)
    expected = events(tmp_path / "whole")
    saved = json.loads((tmp_path / "saved" / "saved.json").read_text())
    wanted = list(saved) if FULL else random.Random(kind).sample(list(saved), 4)
    for name in wanted:
        last = fit(tmp_path, name, *SETTINGS[kind], f"--ckpt_path={tmp_path / 'saved' / name}")
        assert events(tmp_path / name) == expected[saved[name] :], name
        if saved[name] < len(expected):
            assert same(state_of(last), state_of(whole)), name
