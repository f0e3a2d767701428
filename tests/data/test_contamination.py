"""Questions of a benchmark that were trained on are not asked."""

import json

import pytest
from tests.helpers.bfcl import write_bfcl_package
from tests.helpers.chat import TINY

from fc_lightning.data import FunctionCallingDataModule, Source


@pytest.fixture
def training(tmp_path, monkeypatch):
    """The package with one question per row, and training rows that ask two of them in other words and one anew."""
    write_bfcl_package(tmp_path / "site", ask=lambda category, number: f"What time is it in {category} {number}?")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    asked = ["what time is it in LIVE_SIMPLE 0", "What  time is it in parallel 1?", "What time is it in Rome?"]
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Noon."}]} for text in asked
    ]
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return Source(str(file))


def test_they_are_left_out_and_named(training, tmp_path, caplog):
    caplog.set_level("INFO")
    data = FunctionCallingDataModule(
        TINY, train=[training], test=[Source("bfcl:all")], cache_dir=str(tmp_path), max_length=100_000
    )
    data.setup("test")
    asked = set(data.prepared["test"].prompts["id"])
    assert {"live_simple_0", "parallel_1"}.isdisjoint(asked)
    assert {"live_simple_1", "parallel_0", "irrelevance_0"} <= asked
    assert "test: 2 questions are also in `data.train` and are skipped: live_simple_0, parallel_1" in caplog.text


def test_a_held_out_share_keeps_its_questions(training, tmp_path):
    data = FunctionCallingDataModule(
        TINY, train=[Source("bfcl:all")], validation=0.5, cache_dir=str(tmp_path), max_length=100_000
    )
    data.setup("validate")
    assert len(data.prepared["validation"].prompts)
