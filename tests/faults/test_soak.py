"""A long run holds no more at its end than soon after its beginning."""

import json
import sys

import pytest
from tests.helpers.processes import FULL, injected, start

STEPS = 2000 if FULL else 400
SETTLED = 200  # optimizer steps, after which caches and pools have what they need


@pytest.mark.nightly
def test_memory_threads_and_files_stay_as_they_are(tmp_path):
    usage = tmp_path / "usage.jsonl"
    run = start(
        tmp_path,
        *("--trainer.max_epochs=-1", f"--trainer.max_steps={STEPS}", "--trainer.accumulate_grad_batches=1"),
        *("--trainer.val_check_interval=50", "--trainer.check_val_every_n_epoch=null", "--data.num_workers=1"),
        "--data.validation=[{path: data/quickstart/validation.jsonl, limit: 2}]",
        "--model.generation={max_new_tokens: 4, do_sample: false}",
        "--trainer.log_every_n_steps=10",
        callbacks=injected("Usage", file=usage),
        devices=1,
    )
    code, seconds = run.ended(3000)
    assert code == 0, run.output
    lines = [json.loads(line) for line in usage.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(50, STEPS + 1, 50))
    settled = [line for line in lines if line["step"] >= SETTLED]
    first, most = settled[0], {key: max(line[key] for line in settled) for key in settled[0]}
    print(f"{STEPS} steps in {seconds:.0f} s: at step {SETTLED} {first}, at most {most}", file=sys.stderr)
    assert most["bytes"] <= 1.02 * first["bytes"]
    assert (most["threads"], most["tasks"]) == (first["threads"], first["tasks"])
    assert most["files"] == first["files"]
