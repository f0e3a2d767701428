"""The callbacks that shipped recipes share do the same on one rank and on two, in every subcommand that runs them."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
TIMED = ("created", "seconds", "tokens_per_second")


def overlay(folder: Path, devices: int) -> Path:
    """A few rows for the tiny model; its recipe names no callbacks, so it has those that all shipped recipes share."""
    trainer = {"devices": devices, "accumulate_grad_batches": 2 // devices, "num_sanity_val_steps": -1}
    trainer |= {"strategy": "ddp" if devices > 1 else "auto"}
    data = {name: [{"path": f"data/quickstart/{file}.jsonl", "limit": limit}] for name, file, limit in (
        ("train", "train", 8), ("validation", "validation", 3), ("test", "validation", 3),
    )}  # fmt: skip
    file = folder / "overlay.yaml"
    file.write_text(yaml.safe_dump({"trainer": trainer, "data": data}))
    return file


def run(folder: Path, devices: int, subcommand: str) -> dict[str, str]:
    """The files of a run with their text, without what depends on time and place."""
    folder.mkdir()
    command = [sys.executable, "main.py", subcommand, "--config=configs/debug/tiny.yaml"]
    command += [f"--config={overlay(folder, devices)}", f"--trainer.logger.init_args.save_dir={folder}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    (version,) = folder.glob("*/version_0")
    names = {path.relative_to(version).as_posix() for path in version.rglob("*") if path.is_file()}
    files = {name: "" for name in names if "tfevents" not in name}
    for name in ("report.md", "predictions.jsonl", "predictions_before.jsonl"):
        if name in files:
            text = (version / name).read_text()
            files[name] = text.partition("\n## ")[2] if name == "report.md" else text  # its head names folder and time
    return files


@pytest.mark.slow
@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_two_ranks_leave_the_files_of_one(tmp_path, subcommand):
    one, two = run(tmp_path / "one", 1, subcommand), run(tmp_path / "two", 2, subcommand)
    assert two == one
    assert "predictions.jsonl" in one
    assert ("report.md" in one) == (subcommand != "predict")
