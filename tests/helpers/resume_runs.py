"""The recorded run that the tests of resuming repeat, with one rank or two."""

import json
from pathlib import Path

from fc_lightning.cli.lightning_cli import main

TINY = "configs/debug/tiny.yaml"
DROPOUT = "{class_path: peft.LoraConfig, init_args: {r: 4, lora_dropout: 0.2, target_modules: [q_proj, v_proj]}}"


def fit(folder: Path, name: str, *arguments: str, save: bool = False) -> Path:
    """Run the tiny recipe with a recorder; returns the last checkpoint, ``FOLDER/NAME/last.ckpt``.

    Args:
        folder: Where events, checkpoints and the run's folder are written.
        name: Of this run.
        arguments: More arguments of the command line.
        save: Whether to save a checkpoint in every hook; see :class:`tests.helpers.checkpoints.Recorder`.
    """
    recorder = {"class_path": "tests.helpers.checkpoints.Recorder", "init_args": {"file": str(folder / name)}}
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
