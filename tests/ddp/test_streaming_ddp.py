"""Two ranks stream disjoint rows, and go on with the next ones from a checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent


def fit(folder: Path, name: str, *arguments: str) -> list[list[list[list[str]]]]:
    """What two ranks trained on, a micro-batch a step."""
    rows = [
        {"id": f"row{n}", "conversations": [{"from": "human", "value": f"{n}?"}, {"from": "gpt", "value": "Yes."}]}
        for n in range(48)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    checkpoints = (
        "[{class_path: tests.helpers.recording.IdRecorder}, {class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
        f"init_args: {{dirpath: {folder / name}, every_n_train_steps: 1, save_top_k: -1, filename: '{{step}}'}}}}]"
    )
    command = [
        *(sys.executable, "main.py", "fit", "--config", "configs/debug/tiny.yaml", "--trainer.devices=2"),
        *("--trainer.strategy=ddp", "--trainer.max_epochs=-1", "--trainer.accumulate_grad_batches=1"),
        *(f"--trainer.callbacks={checkpoints}", f"--trainer.logger.init_args.save_dir={folder}"),
        *(f"--data.train=[{{path: {folder}/rows.jsonl}}]", "--data.validation=null", "--data.streaming=true"),
        *("--data.max_length=64", "--data.shuffle_buffer=8", *arguments),
    ]
    environment = {**os.environ, "RECORD": str(folder / name)}
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False, env=environment
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return [list(map(json.loads, Path(f"{folder / name}.{rank}").read_text().splitlines())) for rank in range(2)]


@pytest.mark.slow
def test_two_ranks_stream_disjoint_rows_and_go_on_from_a_checkpoint(tmp_path):
    whole = fit(tmp_path, "whole", "--trainer.max_steps=5")
    seen = [{one for batch in rank for pack in batch for one in pack} for rank in whole]
    assert [len(rank) for rank in whole] == [5, 5]
    assert seen[0]
    assert seen[0].isdisjoint(seen[1])
    state = torch.load(tmp_path / "whole" / "step=3.ckpt", weights_only=True)["FunctionCallingDataModule"]["stream"]
    assert (state["consumed"], state["shards"], sorted(state["positions"])) == (3, 2, [0, 1])
    resumed = fit(tmp_path, "resumed", "--trainer.max_steps=5", f"--ckpt_path={tmp_path}/whole/step=3.ckpt")
    assert resumed == [rank[3:] for rank in whole]
