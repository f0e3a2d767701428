"""The throughput callback against counts made by hand."""

import csv

import pytest


def test_what_is_logged_fits_together(run):
    overlay = "--trainer.callbacks=[{class_path: fc_lightning.callbacks.Throughput, init_args: {peak_tflops: 1}}]"
    folder = run("fit", overlay, "--trainer.log_every_n_steps=2", "--trainer.max_epochs=2", "--data.batch_size=2")
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    (row,) = [row for row in rows if row["train/tokens_per_second"]]
    value = {name.removeprefix("train/"): float(text) for name, text in row.items() if text}
    tokens = value["tokens_per_second"] * 2 * value["step_seconds"]
    assert tokens == pytest.approx(2 * 4813)  # both epochs of the 32 rows
    # Three packs in rows of 2,048 or less: two rows in one micro-batch, one in the other.
    assert 0 <= value["padding"] < 0.5
    assert 0 < value["supervised_tokens_per_second"] < value["tokens_per_second"]
    assert 0 < value["data_seconds"] < value["step_seconds"]
    assert 0 < value["mfu"] < 1
    assert value["peak_memory_gb"] > 0.1
    assert any(row.get("val/seconds") for row in rows)
