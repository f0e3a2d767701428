"""Data that is smaller than what it is dealt out to."""

import csv
import json
from pathlib import Path

import pytest
import torch
from tests.helpers.processes import start


def write(path: Path, rows: int, answer: str = "Yes.") -> Path:
    """A file of conversations of one question and one answer."""
    turns = [
        [{"from": "human", "value": f"{number}?"}, {"from": "gpt", "value": answer}] for number in range(1, rows + 1)
    ]
    lines = [json.dumps({"id": f"row{n}", "conversations": turn}) for n, turn in enumerate(turns)]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def logged(folder: Path) -> dict[str, float]:
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return {name: float(value) for row in rows for name, value in row.items() if value}


def test_fewer_rows_than_one_window(run, tmp_path):
    """Three batches, eight of which would be a step: they are one step, divided by their own tokens."""
    data = write(tmp_path / "rows.jsonl", 3)
    settings = (f"--data.train=[{{path: {data}}}]", "--data.validation=null", "--data.packing=false")
    short = run("fit", *settings, "--trainer.accumulate_grad_batches=8")
    exact = run("fit", *settings, "--trainer.accumulate_grad_batches=3")
    one, other = (torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (short, exact))
    assert one["global_step"] == other["global_step"] == 1
    assert logged(short)["train/supervised_tokens"] == logged(exact)["train/supervised_tokens"]
    for name, weight in one["state_dict"].items():
        torch.testing.assert_close(weight, other["state_dict"][name], rtol=1e-5, atol=1e-7)


def test_answers_of_one_token(run, tmp_path):
    """Nothing of such a row is learned but the answer's token and the end of the turn."""
    data = write(tmp_path / "rows.jsonl", 4, answer="a")
    folder = run(
        *("fit", f"--data.train=[{{path: {data}}}]", f"--data.validation=[{{path: {data}}}]"),
        *("--data.packing=false", "--trainer.accumulate_grad_batches=1", "--data.batch_size=1"),
    )
    values = logged(folder)
    assert 0 < values["train/loss"] < 20
    assert 0 < values["val/loss"] < 20
    assert values["train/supervised_tokens"] <= 4


@pytest.mark.parametrize("packing", ["true", "false"])
def test_documents_of_one_token(packing):
    """They have a place in a batch, and no label: nothing comes before them."""
    from fc_lightning.data.collator import Document, PackingCollator
    from fc_lightning.data.samplers import MicroBatchSampler

    capacity = 4 if packing == "true" else None
    sampler = MicroBatchSampler([1] * 6, capacity, batch_size=2, num_replicas=2, rank=0, seed=0)
    documents = [Document(id=str(n), input_ids=[7], supervised=[0, 1]) for n in range(6)]
    batches = [PackingCollator(0)([[documents[n] for n in row] for row in batch]) for batch in sampler]
    assert {batch["num_supervised"] for batch in batches} == {0}
    assert all((batch["position_ids"][:, 0] == 0).all() for batch in batches)


def test_an_empty_validation_set_ends_in_one_sentence(run, tmp_path, capsys):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(SystemExit) as exit_:
        run("fit", f"--data.validation=[{{path: {empty}}}]")
    assert exit_.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {empty}: none of the 0 rows can be used"


def test_no_validation_at_all(run):
    folder = run("fit", "--data.validation=[]")
    assert not [name for name in logged(folder) if name.startswith("val/")]
    assert (folder / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
def test_two_ranks_with_less_than_one_row_each(tmp_path):
    """One row to train on and one to validate on: the other rank takes part with nothing."""
    data = write(tmp_path / "rows.jsonl", 1)
    one_row = (f"--data.train=[{{path: {data}}}]", f"--data.validation=[{{path: {data}}}]", "--trainer.max_epochs=4")
    run = start(tmp_path, *one_row, "--trainer.val_check_interval=1.0", "--trainer.accumulate_grad_batches=8")
    code, _ = run.ended(300)
    assert code == 0, run.output
    last = torch.load(run.version / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    assert logged(run.version)["val/loss"] > 0
