"""Runs of two ranks in processes of their own, which something happens to."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FULL = os.environ.get("FAULTS") == "full"
PYTHON = sys.executable


def sample(cases: list, count: int, full: int) -> list:
    """So many of the cases, spread over them; with ``FAULTS=full`` all, gone through until there are ``full``."""
    wanted = full if FULL else count
    step = 1 if FULL else max(1, len(cases) // count)
    return [(number, *cases[number * step % len(cases)]) for number in range(wanted)]


@dataclass
class Run:
    """A run under way.

    Attributes:
        process: The first rank's.
        folder: Where it writes.
    """

    process: subprocess.Popen
    folder: Path

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text(errors="replace")

    def wait_for(self, *files: Path, timeout: float = 240) -> None:
        """Wait until the files are there."""
        limit = time.monotonic() + timeout
        while not all(file.exists() for file in files):
            assert self.process.poll() is None, self.output
            assert time.monotonic() < limit, self.output
            time.sleep(0.05)

    def ended(self, timeout: float) -> tuple[int, float]:
        """The exit code, and the seconds until the last process of the run was gone."""
        start = time.monotonic()
        try:
            code = self.process.wait(timeout)
            while left := self.processes():
                assert time.monotonic() - start < timeout, (left, self.output)
                time.sleep(0.05)
        finally:
            for process in self.processes():
                os.kill(process, 9)
        return code, time.monotonic() - start

    def processes(self) -> list[int]:
        """All of its processes: it was started in a session of its own."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = stat.read_text().rsplit(")", 1)[1].split()[:4]
            except OSError:
                continue  # it has just ended
            if int(session) == self.process.pid and state != "Z":
                found.append(int(stat.parent.name))
        return found

    @property
    def version(self) -> Path:
        (version,) = self.folder.glob("runs/tiny/version_0")
        return version


def start(folder: Path, *arguments: str, callbacks: str = "", devices: int = 2, **environment: str) -> Run:
    """Start a run of the tiny recipe: twelve steps in two epochs, each with a validation in its middle and its end.

    Args:
        folder: Where it writes.
        arguments: More of them.
        callbacks: More of them, a YAML list's items.
        devices: Ranks.
        environment: More variables.
    """
    folder.mkdir(exist_ok=True)
    checkpoint = (
        "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: "
        "{every_n_train_steps: 2, save_top_k: 1, save_last: true}}"
    )
    adapter = "{class_path: fc_lightning.callbacks.SaveAdapter}"
    command = [
        *(PYTHON, "main.py", "fit", "--config", "configs/debug/tiny.yaml"),
        *(f"--trainer.devices={devices}", f"--trainer.strategy={'ddp' if devices > 1 else 'auto'}"),
        *("--trainer.max_epochs=2", "--trainer.val_check_interval=0.5", "--data.packing=false"),
        "--data.generation_batch_size=1",  # so that each rank has some
        "--data.train=[{path: data/quickstart/train.jsonl, limit: 24}]",
        f"--trainer.callbacks=[{checkpoint}, {adapter}{', ' if callbacks else ''}{callbacks}]",
        f"--trainer.logger.init_args.save_dir={folder / 'runs'}",
        *arguments,
    ]
    with (folder / "output.txt").open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment},
            start_new_session=True,
        )
    return Run(process, folder)


def injected(name: str, **settings: object) -> str:
    """A callback of :mod:`tests.faults.injection`, for ``start``."""
    given = ", ".join(f"{key}: {value}" for key, value in settings.items())
    return f"{{class_path: tests.faults.injection.{name}, init_args: {{{given}}}}}"
