"""One rank fails, or is killed: all processes end, and what is shown is what went wrong first."""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from tests.helpers.processes import injected, sample, start

from fc_lightning.callbacks.failures import Failures, describe_batch
from fc_lightning.data.collator import Document, PackingCollator

WHERE = ("training", "validation", "collator", "callback", "killed")
# In this order a sample of few has different places and different ranks.
CASES = [(number % 2, WHERE[number % 5]) for number in range(10)]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "rank", "where"), sample(CASES, 2, 30))
def test_all_processes_end_and_the_first_error_is_shown(tmp_path, number, rank, where):
    fault = injected(
        "Fault", where="nothing" if where == "killed" else where, rank=rank, step=1 + number % 4, folder=tmp_path
    )
    workers = "--data.num_workers=1" if where == "collator" or number % 2 else "--data.num_workers=0"
    run = start(tmp_path, workers, "--trainer.max_epochs=60", callbacks=fault)
    if where == "killed":
        run.wait_for(tmp_path / "0", tmp_path / "1")
        os.kill(int((tmp_path / str(rank)).read_text()), signal.SIGKILL)
        code, seconds = run.ended(60)
        assert code == (-signal.SIGKILL if rank == 0 else 1), run.output
        if rank == 1:
            assert run.output.rstrip().endswith("error: rank 1 was killed by SIGKILL (out of memory?)")
    else:
        run.wait_for(tmp_path / "raised")
        code, seconds = run.ended(60)
        assert code == 1, run.output
        _, last = run.output.split(f"rank {rank} failed first:\n")
        assert last.startswith("Traceback"), run.output
        assert "\nValueError: planted\n" in last
        assert "tests/helpers/injection.py" in last
        assert not [line for line in last.splitlines() if "Error" in line and not re.search("planted|Caught", line)], (
            run.output
        )
    assert seconds < 30
    print(f"{where} on rank {rank}: {seconds:.1f} s", file=sys.stderr)


def test_out_of_memory_names_the_batch_and_what_to_lower(run, monkeypatch):
    from fc_lightning.training import module

    def too_much(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(module, "token_loss_sum", too_much)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        run("fit", "--data.batch_size=2", "--data.max_length=512")
    assert str(caught.value).startswith("CUDA out of memory")
    (note,) = caught.value.__notes__
    for part in ("2 rows ×", "data.max_length", "data.batch_size", "model.head_chunk", "gradient_checkpointing"):
        assert part in note
    assert "quickstart" in note or "train" in note


def test_a_batch_is_described_without_its_padding():
    documents = [
        Document(id=name, input_ids=[5] * length, supervised=[0, 1]) for name, length in (("a", 3), ("b", 4), ("c", 2))
    ]
    batch = PackingCollator(pad_token_id=0)([documents[:2], documents[2:]])
    text = describe_batch(batch, training=False)
    assert "2 rows × 7 tokens" in text
    assert "[[3, 4], [2]] tokens: [['a', 'b'], ['c']]" in text
    assert "gradient_checkpointing" not in text
    prompts = {"order": [0, 1], "id": ["p", "q"], "input_ids": [[1, 2, 3], [4]], "limits": (1000, 64)}
    text = describe_batch(prompts, training=False)
    assert "2 prompts × 3 tokens (of [3, 1] tokens: ['p', 'q'])" in text
    assert "up to 1 prompts × 3 tokens" in describe_batch({**prompts, "limits": (1000, 1)}, training=False)
    assert "data.generation_batch_tokens" in text


def test_other_errors_are_left_as_they_are():
    callback, error = Failures(), ValueError("something")
    callback.on_train_batch_start(None, None, {"order": []}, 0)
    callback.on_exception(None, None, error)
    assert not hasattr(error, "__notes__")


LEAVING = """
import sys
import torch.distributed as dist
from fc_lightning.training.distributed import exit_on_error
destroy = dist.destroy_process_group
dist.destroy_process_group = lambda: (print("left"), destroy())
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
with exit_on_error():
    pass
with exit_on_error():  # a script may run several jobs in one group
    print(dist.is_initialized())
    {ending}
"""


@pytest.mark.parametrize(
    ("ending", "left", "code"),
    [("", ["left"], 0), ("sys.exit(143)", ["left"], 143), ("raise ValueError", [], 1)],
    ids=["done", "stopped by a signal", "failed"],
)
def test_the_process_group_is_left_at_the_exit(ending, left, code):
    done = subprocess.run(
        [sys.executable, "-c", LEAVING.format(ending=ending)], capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.returncode) == (["True", *left], code), done.stderr
