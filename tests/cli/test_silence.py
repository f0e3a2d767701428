"""Each subcommand prints what it has to say, and no line of a library that nobody can act on."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.helpers.printed_lines import ALLOWED, surplus_lines
from tests.helpers.teacher import Teacher

from fc_lightning.cli.help import SUBCOMMANDS
from fc_lightning.utils.progress import Counter, track

# Runs subcommands one after the other: importing everything takes most of the time of one.
SCRIPT = """
import io, json, sys
commands = json.load(open(sys.argv[1]))
sys.argv = ["main.py"]
from fc_lightning.cli.main import main
for command in commands:
    print("==", command[0], flush=True)
    sys.stdin = io.StringIO("What time is it in Oslo?\\n\\n\\n\\n\\n")
    main(command)
"""
NOISE = re.compile(
    r"loftq|[GT]PU available|litlogger|litmodels|[Ss]eed set|AMP|train_dataloader|dirpath has changed"
    r"|gemm_4bit|sync_dist|broadcast_buffers|[Dd]eprecat|Warning|distributed_backend|GLOBAL_RANK"
    r"|Restor|Loaded model|weights_only"
)


def commands(folder: Path, teacher: str, *more: str) -> list[list[str]]:
    tools = folder / "tools.json"
    first = Path("data/quickstart/train.jsonl").read_text(encoding="utf-8").splitlines()[0]
    tools.write_text(json.loads(first)["tools"])
    every = ["--config", "configs/debug/tiny.yaml", f"--trainer.logger.save_dir={folder}", *more]
    return [
        ["fit", *every, "--trainer.num_sanity_val_steps=-1"],
        ["validate", *every, "--ckpt_path=best"],
        ["test", *every, "--ckpt_path=last"],
        ["predict", *every, "--question=What time is it in Oslo?", f"--tools={tools}"],
        ["chat", *every],
        ["export", *every, f"--output={folder / 'exported'}"],
        ["audit", *every, "--examples=0"],
        ["report", *every, f"--runs=[{folder / 'tiny/version_0'}]", f"--output={folder / 'comparison'}"],
        ["mine", *every, "--samples=2"],
        ["think", *every, f"--base_url={teacher}", "--teacher=m", f"--output={folder / 'thoughts.jsonl'}"],
        ["init", str(folder / "work")],
    ]


def output(folder: Path, jobs: list[list[str]]) -> dict[str, list[str]]:
    """The lines that each subcommand prints, on both streams."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-c", SCRIPT, str(folder / "jobs.json")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path("src").resolve()), os.environ.get("PYTHONPATH", "")])
    }
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    start, *parts = done.stdout.split("== ")
    assert not start
    return {lines[0]: [line for line in lines[1:] if line.strip()] for lines in (part.splitlines() for part in parts)}


def surplus(subcommand: str, lines: list[str]) -> list[str]:
    """The lines that are not on the subcommand's list."""
    others = surplus_lines(subcommand, lines)
    # What a random model says can be anything.
    return [line for line in others if NOISE.search(line)] if subcommand in ("predict", "chat") else others


@pytest.mark.slow
def test_every_line_is_one_of_ours(tmp_path):
    pytest.importorskip("openai")
    with Teacher() as teacher:
        printed = output(tmp_path, commands(tmp_path, teacher.url))
    assert set(printed) == set(ALLOWED) == set(SUBCOMMANDS)
    assert {name: surplus(name, lines) for name, lines in printed.items()} == {name: [] for name in printed}
    assert len(printed["predict"]) > 1  # the answer


@pytest.mark.slow
def test_two_ranks_are_as_silent(tmp_path):
    ranks = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.packing=false"]
    for job in commands(tmp_path, "", *ranks)[:4]:  # what a trainer runs
        command = [sys.executable, "main.py", *job]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        assert done.returncode == 0, done.stdout
        assert surplus(job[0], done.stdout.splitlines()) == [], job[0]


def test_a_line_of_progress(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("fc_lightning.utils.progress.time.monotonic", lambda: now[0])
    counter = Counter("validation", 200, "turns")
    counter.advance(40, "exact match 0.35")
    now[0] += 60
    assert counter.describe() == "validation: 40/200 turns, exact match 0.35, 4:00 left"
    counter.print_if_due(90)
    assert capsys.readouterr().out == ""
    counter.print_if_due(60)
    assert capsys.readouterr().out == "validation: 40/200 turns, exact match 0.35, 4:00 left\n"
    with track("preparing data", None, "rows", interval=30) as rows:
        rows.advance(1000)
        now[0] += 31
        rows.advance(1000)
    assert capsys.readouterr().out == "preparing data: 2,000 rows\n"


def test_a_bar_of_progress_leaves_nothing_behind(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with track("preparing data", 3, "rows") as rows:
        rows.advance(3, "done")
    assert rows.done == 3
