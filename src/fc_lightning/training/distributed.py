"""The processes of a run on one machine: all of them end together, and the first error is the one that is shown.

Lightning's launcher starts one process for each rank but the first. When a rank fails, the others fail too, because
they wait for it: their errors say "connection closed", and one of them may be all that the user sees. So each rank puts
its error down with the time (as ``torch.distributed.elastic`` does), and the first process tells the earliest of them.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from fc_lightning.utils.errors import first_line
from fc_lightning.utils.secrets import redact

# For the processes that `Launcher` starts: where they put their errors down, and who has started them.
_FOLDER, _PARENT = "FC_LIGHTNING_ERRORS", "FC_LIGHTNING_PARENT"
# What a rank leaves with that was asked to stop.
STOPPED = {signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGINT: 128 + signal.SIGINT}
_SETTLE = 1.0  # seconds in which other ranks' errors may come to light
_GRACE = 5.0  # seconds that the first process has to finish its loggers when another has failed
_LAST = 15.0  # seconds after which it does not wait for its own end any longer


class Ranks:
    """What one process knows of the others.

    Args:
        folder: Where errors are put down.
        rank: Of this process on its machine.
        procs: The processes that this one has started: those of ranks 1, 2, …
    """

    def __init__(self, folder: Path, rank: int, procs: list[subprocess.Popen]):
        self.folder, self.rank, self.procs = folder, rank, procs
        self._ending = threading.Lock()

    def report(self, error: BaseException) -> None:
        """Put an error of this rank down, unless it has put one down already."""
        file = self.folder / f"{self.rank}.json"
        if not file.exists():
            last = f"{type(error).__name__}: {first_line(error)}"
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps({"time": time.time(), "last": last, "text": told(error)}), encoding="utf-8")
            partial.rename(file)

    def watch(self) -> None:
        """Wait for the others' end; where one has failed, see to it that all end. Runs in a thread."""
        failed = False
        while not failed:
            time.sleep(0.2)
            codes = [proc.poll() for proc in self.procs]
            if all(code == 0 or code in STOPPED.values() for code in codes):
                return  # done, or stopped as all have agreed
            failed = any(self.folder.glob("*.json")) or any(code not in (None, 0, *STOPPED.values()) for code in codes)
        time.sleep(_GRACE)  # the main thread may come to an end by itself, and finish its loggers
        code = self.end()
        for process in multiprocessing.active_children():  # data workers; earlier, it would be an error of its own
            process.kill()
        os._exit(code)

    def end(self) -> int:
        """Tell the first error, end the other processes, and give the code to leave with.

        Who comes second waits here until the process ends.
        """
        self._ending.acquire()
        time.sleep(_SETTLE)
        codes = {rank: proc.poll() for rank, proc in enumerate(self.procs, 1)}
        found = {int(file.stem): json.loads(file.read_text("utf-8")) for file in self.folder.glob("*.json")}
        for rank, code in codes.items():
            if code and rank not in found:  # gone without a word: nothing that others say can have been earlier
                found[rank] = {"time": 0.0, "last": _ended(code), "text": f"error: rank {rank} was {_ended(code)}"}
        first, *others = sorted(found, key=lambda rank: found[rank]["time"])
        lines = [f"rank {rank} failed in consequence: {found[rank]['last']}" for rank in sorted(others)]
        print(redact("\n".join(["", *lines, f"rank {first} failed first:", found[first]["text"]])), file=sys.stderr)
        sys.stderr.flush()
        for proc in self.procs:
            proc.kill()
        self.join()
        _leave_after(_LAST)
        return STOPPED.get(signal.Signals(-code), 1) if (code := codes.get(first) or 0) < 0 else 1

    def join(self) -> None:
        """Wait for the others, which have nothing more to wait for."""
        for proc in self.procs:
            try:
                proc.wait(_LAST)
            except subprocess.TimeoutExpired:
                proc.kill()
        if self.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)


_here: Ranks | None = None
_one_line: tuple[type[BaseException], ...] = ()


class Launcher(_SubprocessScriptLauncher):
    """Lightning's launcher, whose processes end with the one that has started them, and the other way round."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Start the processes, then run a function in this one."""
        global _here
        if not self.cluster_environment.creates_processes_externally:
            folder = Path(tempfile.mkdtemp(prefix="fc-lightning-errors-"))
            os.environ.update({_FOLDER: str(folder), _PARENT: str(os.getpid())})
            try:
                self._call_children_scripts()
            finally:
                del os.environ[_FOLDER], os.environ[_PARENT]
            _here = Ranks(folder, 0, self.procs)
            threading.Thread(target=_here.watch, daemon=True, name="ranks").start()
        # From here on the environment says that the processes are there: Lightning starts and watches none.
        return super().launch(function, *args, trainer=trainer, **kwargs)


def use_launcher(trainer: Trainer) -> None:
    """Have a trainer that starts its processes itself start them with :class:`Launcher`."""
    launcher = trainer.strategy.launcher
    if type(launcher) is _SubprocessScriptLauncher:
        trainer.strategy._launcher = Launcher(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)


def report(error: BaseException) -> None:
    """Put an error down as soon as it is known: what comes of it, here or on others, must not be taken for it."""
    if _here is not None and isinstance(error, Exception):
        _here.report(error)


@contextmanager
def together(one_line: tuple[type[BaseException], ...]) -> Iterator[None]:
    """Run what is one rank's, or a whole run: ends the process with code 1 on an error, after it has been told.

    Args:
        one_line: Errors that are told in one line. Others are raised again, or where there are more ranks, told with
            their traceback, by the first process, once.
    """
    global _here, _one_line
    _one_line = one_line
    _join_parent()
    try:
        yield
    except Exception as error:
        if _here is None:
            if not isinstance(error, one_line):
                raise
            print(redact(told(error)), file=sys.stderr)
            sys.exit(1)
        _here.report(error)
        sys.exit(_here.end() if _here.rank == 0 else 1)
    finally:
        ranks, _here = _here, None
        if ranks is not None:
            ranks.join()


def told(error: BaseException) -> str:
    """An error in a line, if that is all that the user needs, or with its traceback."""
    if isinstance(error, _one_line):
        return f"error: {error}"
    return "".join(traceback.format_exception(error)).rstrip()


def _join_parent() -> None:
    """Where :class:`Launcher` has started this process: end with its parent, and put errors down where it looks."""
    global _here
    parent, folder = os.environ.pop(_PARENT, None), os.environ.pop(_FOLDER, None)
    if parent is None or folder is None:
        return
    if sys.platform.startswith("linux"):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if parent != str(os.getppid()):
        sys.exit(1)  # it ended while this one was being loaded
    _here = Ranks(Path(folder), int(os.environ["LOCAL_RANK"]), [])


def _ended(code: int) -> str:
    """What became of a process without a report."""
    if code == -signal.SIGKILL:
        return "ended by SIGKILL (out of memory?)"
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _leave_after(seconds: float) -> None:
    """End this process, even if what comes at its end hangs."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()
