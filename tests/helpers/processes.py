"""Runs of two ranks in processes of their own, into which faults are injected.

Starting Python and importing everything takes most of the time of such a run. If many are wanted (``FAULTS=full``),
processes are forked from this one instead, which has imported everything; from
:func:`fc_lightning.cli.lightning_cli.main` on they run like any other.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

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

    process: subprocess.Popen | Forked
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
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment}
    with (folder / "output.txt").open("ab") as output:
        if FULL:
            process = Forked(command, environment, ROOT, output)
        else:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
    return Run(process, folder)


class Forked:
    """As much of ``subprocess.Popen`` as a run and its launcher need, for ``python main.py …``, without new Pythons."""

    def __init__(self, command, env, cwd=None, output=None):
        import fc_lightning.cli.lightning_cli

        self._lock = threading.Lock()
        self.returncode = None
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            if output is not None:  # the first rank; the others write where it does
                os.setsid()
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
                sys.argv = command[1:]
            os.environ.clear()
            os.environ.update(env)
            os.chdir(cwd or ROOT)
            from lightning.pytorch.strategies.launchers import subprocess_script

            subprocess_script.subprocess = SimpleNamespace(Popen=Forked)
            fc_lightning.cli.lightning_cli.main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code
        except BaseException:
            traceback.print_exc()
        finally:
            atexit._run_exitfuncs()
            os._exit(code)

    def poll(self):
        with self._lock:  # a thread of the first rank watches, while its main thread may wait
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            return self.returncode

    def wait(self, timeout=None):
        limit = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if limit is not None and time.monotonic() > limit:
                raise subprocess.TimeoutExpired("main.py", timeout)
            time.sleep(0.02)
        return self.returncode

    def send_signal(self, signum):
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def injected(name: str, **settings: object) -> str:
    """A callback of :mod:`tests.helpers.injection`, for ``start``."""
    given = ", ".join(f"{key}: {value}" for key, value in settings.items())
    return f"{{class_path: tests.helpers.injection.{name}, init_args: {{{given}}}}}"
