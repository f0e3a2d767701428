"""A loss or a gradient that is not finite ends every rank before the optimizer step, or the step is skipped."""

import csv
import json
from pathlib import Path

import pytest
from tests.helpers.processes import injected, start

SMALL = (
    "--data.packing=false",
    "--data.train=[{path: data/quickstart/train.jsonl, limit: 8}]",
    "--data.validation=null",
    "--trainer.accumulate_grad_batches=2",
)


def lines(folder: Path, rank: int) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{rank}.jsonl").read_text().splitlines()]


def fit(run, tmp_path: Path, *arguments: str, **settings: object) -> Path:
    checkpoint = "{class_path: lightning.pytorch.callbacks.ModelCheckpoint}"
    spoiler = injected("NotANumber", folder=tmp_path, rank=0, **settings)
    return run("fit", *SMALL, f"--trainer.callbacks=[{checkpoint}, {spoiler}]", *arguments)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_run_stops_before_the_step_and_names_the_rows(run, tmp_path, capsys, what):
    with pytest.raises(SystemExit) as exit_:
        fit(run, tmp_path, batches=[5], what=what)  # the second batch of the third step
    assert exit_.value.code == 1
    seen = lines(tmp_path, 0)
    assert [line["steps"] for line in seen] == [0, 1, 1, 2, 2, 2]
    assert len({line["weights"] for line in seen}) == 3  # they did change before, twice
    assert seen[-1]["weights"] == seen[-2]["weights"] == seen[-3]["weights"]
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: optimizer step 3: the {what} is not finite; affected rows: rank 0: ")
    named = error.split("rank 0: ")[1].split(". ")[0].split(", ")
    (before,) = seen[4]["ids"][0]
    assert (before in named) == (what == "gradient")  # the batch before had a loss as it should be
    assert len(named) == (2 if what == "gradient" else 1)
    assert not {name for line in seen[:4] for pack in line["ids"] for name in pack} & set(named)


def test_a_step_is_left_out_where_that_is_wanted(run, tmp_path):
    folder = fit(run, tmp_path, "--model.non_finite=skip", "--model.weight_decay=0.1", batches=[2, 5])
    seen = lines(tmp_path, 0)
    assert [line["steps"] for line in seen] == [0, 1, 1, 2, 2, 3, 3, 4]
    weights = [line["weights"] for line in seen]
    assert weights[1] == weights[2] == weights[3] == weights[4] == weights[5]
    assert len({weights[0], weights[1], weights[7]}) == 3
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert [row["train/skipped_steps"] for row in rows if row["train/skipped_steps"]] == ["0.0", "1.0", "2.0", "2.0"]
    assert [row["train/loss"] == "nan" for row in rows] == [False, True, True, False]


@pytest.mark.slow
def test_two_ranks_stop_at_the_same_step_with_the_same_weights(tmp_path):
    run = start(tmp_path, *SMALL, callbacks=injected("NotANumber", folder=tmp_path, rank=1, batches=[2]))
    code, _ = run.ended(300)
    assert code == 1
    first, second = (lines(tmp_path, rank) for rank in range(2))
    assert [line["steps"] for line in first] == [line["steps"] for line in second] == [0, 1, 1, 1]
    assert [line["weights"] for line in first] == [line["weights"] for line in second]
    assert first[1]["weights"] == first[-1]["weights"] != first[0]["weights"]
    error = run.output.rstrip().splitlines()[-1]
    ((name,),) = second[2]["ids"]
    assert error.startswith(f"error: optimizer step 2: the loss is not finite; affected rows: rank 1: {name}. ")


@pytest.mark.parametrize("more", [(), ("--trainer.callbacks=[fc_lightning.callbacks.SaveAdapter]",)])
def test_a_rate_that_destroys_the_weights_leaves_none_of_them(run, tmp_path, capsys, more):
    """The last step makes them useless: no later loss shows it."""
    rates = ("--model.learning_rate=1e30", "--model.warmup=0", "--trainer.max_steps=1")
    with pytest.raises(SystemExit) as exit_:
        run("fit", *SMALL, *rates, *more)
    assert exit_.value.code == 1
    assert "the weights are not finite" in capsys.readouterr().err.splitlines()[-1]
    assert not [file for ending in ("ckpt", "safetensors") for file in tmp_path.rglob(f"*.{ending}")]
