"""Files that would run code if they were unpickled: rejected, and nothing is run."""

import json
import multiprocessing
import os
import pickle
import shutil
import signal
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from fc_lightning.cli.lightning_cli import main
from fc_lightning.data import DataError, FunctionCallingDataModule
from fc_lightning.data.cache import write_digests
from fc_lightning.data.prepare import load_prepared
from fc_lightning.data.sources import Source
from fc_lightning.training.checkpoint_io import CheckpointError, read_checkpoint

TINY = "tests/models/tiny_gemma2"


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def payload(tmp_path):
    """What would make a file, which must not be there in the end."""
    marker = tmp_path / "was-run"
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()  # it works
    marker.unlink()
    yield Payload(marker)
    assert not marker.exists()


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main([arguments[0], "--config=configs/debug/tiny.yaml", *arguments[1:]])
    assert caught.value.code == 1
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("form", ["archive", pytest.param("pickle", marks=pytest.mark.slow)])
def test_a_checkpoint(tmp_path, payload, capsys, form):
    path = tmp_path / "bad.ckpt"
    content = {"state_dict": {"weight": torch.ones(3)}, "callbacks": payload}
    torch.save(content, path, _use_new_zipfile_serialization=form == "archive")
    with pytest.raises(CheckpointError, match=r"bad\.ckpt: cannot be read as a checkpoint"):
        read_checkpoint(path)
    runs = f"--trainer.logger.init_args.save_dir={tmp_path / 'runs'}"
    for subcommand in ("fit", "test", "export"):
        output = [f"--output={tmp_path / 'model'}"] if subcommand == "export" else []
        error = refused(capsys, subcommand, runs, f"--ckpt_path={path}", *output)
        assert error.startswith(f"error: {path}: cannot be read as a checkpoint")


@pytest.mark.parametrize("file", ["adapter_model.bin", "pytorch_model.bin"])
def test_a_base_or_an_adapter_in_its_folder(tmp_path, payload, capsys, file):
    base = tmp_path / "base"
    shutil.copytree(TINY, base)
    torch.save({"weight": payload}, base / file)
    if file == "adapter_model.bin":
        config = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "base_model_name_or_path": TINY}
        (base / "adapter_config.json").write_text(json.dumps(config))
    else:
        (base / "model.safetensors").unlink()
    error = refused(capsys, "validate", f"--model.base={base}", f"--trainer.logger.init_args.save_dir={tmp_path}")
    assert error.startswith(f"error: {base}: ")


@pytest.mark.parametrize("sealed", [False, True])
def test_a_prepared_data_set(tmp_path, payload, sealed):
    """A pickle in a file's place is damage, and the data is prepared anew; with digests to match it is refused."""

    def data():
        data = FunctionCallingDataModule(
            TINY, [Source("data/quickstart/train.jsonl", limit=4)], cache_dir=str(tmp_path / "cache")
        )
        data.setup("fit")
        return data

    expected = data().prepared["train"].documents[:]
    (folder,) = (path for path in (tmp_path / "cache" / "data").iterdir() if path.is_dir())
    for name in ("documents.arrow", "state.json", "dataset_info.json", "dataset.py", "data.pkl"):
        (folder / name).write_bytes(pickle.dumps(payload))
    if sealed:
        write_digests(folder)
        with pytest.raises(DataError, match=f"{folder}: not a folder of prepared data"):
            data()
    else:
        assert data().prepared["train"].documents[:] == expected


def test_preparing_that_was_killed_leaves_nothing_behind(tmp_path, monkeypatch):
    """SIGKILL when all is written but the digests: the next run prepares anew, and removes what is left."""

    def data():
        rows = [Source("data/quickstart/train.jsonl", limit=4)]
        data = FunctionCallingDataModule(TINY, rows, cache_dir=str(tmp_path / "cache"))
        data.setup("fit")
        return data.prepared["train"].documents[:]

    def killed():
        monkeypatch.setattr(
            "fc_lightning.data.prepare.write_digests", lambda folder: os.kill(os.getpid(), signal.SIGKILL)
        )
        data()

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    (left,) = (tmp_path / "cache" / "data").glob("*.partial")
    assert (left / "documents.arrow").stat().st_size > 1000
    assert len(data()["id"]) == 4
    assert not list((tmp_path / "cache" / "data").glob("*.partial"))


def test_arrow_types_that_are_pickles(tmp_path, payload):
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(payload)}
    schema = pa.schema([pa.field("id", pa.string(), metadata=metadata)])
    for name in ("documents.arrow", "prompts.arrow"):
        with pa.ipc.new_stream(str(tmp_path / name), schema) as stream:
            stream.write_batch(pa.record_batch([["a"]], schema=schema))
    report = {"rows": 1, "documents": 1, "prompts": 0, "tokens": 1, "supervised": 1}
    lists = {name: [] for name in ("skipped", "flawed", "too_long", "cut")}
    (tmp_path / "report.json").write_text(json.dumps({**report, **lists}))
    write_digests(tmp_path)
    with pytest.raises(DataError, match="not a folder of prepared data"):
        load_prepared(tmp_path)
