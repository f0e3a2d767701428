"""``init``: a folder to start from, with the schema that its recipes name, and nothing overwritten."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fc_lightning.cli.main import main
from fc_lightning.commands.init import InitError, init


def test_a_folder_to_start_from(tmp_path, capsys):
    main(["init", str(tmp_path / "project")])
    assert "--config configs/quickstart.yaml" in capsys.readouterr().out
    folder = tmp_path / "project"
    for name in ("configs/quickstart.yaml", "configs/trainer/ddp.yaml", "data/quickstart/train.jsonl"):
        assert (folder / name).read_bytes() == Path(name).read_bytes()
    assert not (folder / "configs/debug").exists()  # its model is one of the tests
    schema = json.loads((folder / "configs/schema.json").read_text())
    assert "learning_rate" in schema["properties"]["model"]["properties"]


@pytest.mark.parametrize("name", ["configs", "data/quickstart"])
def test_nothing_is_overwritten(tmp_path, name, capsys):
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(InitError, match="already exists"):
        init(tmp_path)
    assert not list((tmp_path / name).iterdir())
    with pytest.raises(SystemExit):
        main(["init", str(tmp_path)])
    assert capsys.readouterr().err == f"error: {tmp_path / name}: already exists; choose another folder\n"


def test_the_package_and_init_import_nothing_heavy():
    script = (
        "import sys, fc_lightning, fc_lightning.commands.init; print({'torch', 'lightning', 'peft'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "set()\n"


def test_a_place_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        main(["init", str(tmp_path / "file")])
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'file' / 'configs'}: could not be written: ")


def test_a_working_directory_that_was_removed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir((tmp_path / "gone").mkdir() or tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SystemExit):
        main(["fit"])
    assert capsys.readouterr().err == "error: the working directory no longer exists; change to another one\n"
