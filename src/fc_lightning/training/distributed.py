"""The processes of a run on one machine: all of them end together, and only the first error is shown.

Exceptions become one-line errors here, in `exit_on_error` and `format_error`, because that takes all ranks. Collectives
are in `accumulation.py` (loss totals) and in `evaluation/evaluator.py` (turns).

Lightning's launcher starts one process for each rank but the first. When a rank fails, the others fail too because they
wait for it: their errors say "connection closed", and one of them may be all that the user sees. So each rank writes
its error to a file with the time (as ``torch.distributed.elastic`` does), and the first process prints the earliest.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
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

import torch
import torch.distributed
from lightning import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from fc_lightning.models.loading import is_mapped
from fc_lightning.training.lightning_internals import SubprocessLauncher, attached_trainer
from fc_lightning.training.precision import base_dtype
from fc_lightning.utils.errors import UserError, first_line
from fc_lightning.utils.escaping import printable_text
from fc_lightning.utils.secrets import redact

# Environment of the processes that `Launcher` starts: the folder for their errors, and the process that started them.
_FOLDER, _PARENT = "FC_LIGHTNING_ERRORS", "FC_LIGHTNING_PARENT"
# Exit codes of a rank that was asked to stop.
STOPPED = {signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGINT: 128 + signal.SIGINT}
# In seconds:
_COLLECT_ERRORS = 1.0  # to wait for the errors of other ranks
_FINISH_LOGGERS = 5.0  # that the first process has to finish its loggers once another rank has failed
_EXIT_TIMEOUT = 15.0  # that a process has to exit


class Ranks:
    """This process's view of the other ranks on its machine, which report their errors through a shared folder.

    The first one has started the processes of ranks 1, 2, …
    """

    def __init__(self, folder: Path, rank: int, procs: list[subprocess.Popen]):
        self.folder = folder
        self.rank = rank
        self.procs = procs
        self._ending = threading.Lock()

    def record(self, error: BaseException) -> None:
        """Write this rank's first error to its file."""
        file = self.folder / f"{self.rank}.json"
        if not file.exists():
            summary = f"{type(error).__name__}: {first_line(error)}"
            record = {"time": time.time(), "summary": summary, "text": format_error(error)}
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(record), encoding="utf-8")
            partial.rename(file)

    def watch(self) -> None:
        """Wait for the other ranks to exit; if one has failed, end all of them. Runs in a thread."""
        failed = False
        while not failed:
            time.sleep(0.2)
            codes = [proc.poll() for proc in self.procs]
            if all(code == 0 or code in STOPPED.values() for code in codes):
                return  # done, or stopped together
            failed = any(self.folder.glob("*.json")) or any(code not in (None, 0, *STOPPED.values()) for code in codes)
        time.sleep(_FINISH_LOGGERS)  # the main thread may end by itself, and finish its loggers
        code = self.end()
        for process in multiprocessing.active_children():  # data workers; killed earlier, they raise an error
            process.kill()
        os._exit(code)

    def end(self) -> int:
        """Print the first error, end the other processes, and return the exit code.

        A second caller blocks here until the process exits.
        """
        self._ending.acquire()
        time.sleep(_COLLECT_ERRORS)
        codes = {rank: proc.poll() for rank, proc in enumerate(self.procs, 1)}
        errors = {int(file.stem): json.loads(file.read_text("utf-8")) for file in self.folder.glob("*.json")}
        for rank, code in codes.items():
            if code and rank not in errors:  # it died without an error: nothing that others report was earlier
                cause = _describe_exit(code)
                errors[rank] = {"time": 0.0, "summary": cause, "text": f"error: rank {rank} {cause}"}
        first, *others = sorted(errors, key=lambda rank: errors[rank]["time"])
        lines = [f"rank {rank} failed as a result: {errors[rank]['summary']}" for rank in sorted(others)]
        print(redact("\n".join(["", *lines, f"rank {first} failed first:", errors[first]["text"]])), file=sys.stderr)
        sys.stderr.flush()
        for proc in self.procs:
            proc.kill()
        self.join()
        _exit_after(_EXIT_TIMEOUT)
        return STOPPED.get(signal.Signals(-code), 1) if (code := codes.get(first) or 0) < 0 else 1

    def join(self) -> None:
        """Wait until the other processes have exited."""
        for proc in self.procs:
            try:
                proc.wait(_EXIT_TIMEOUT)
            except subprocess.TimeoutExpired:
                proc.kill()
        if self.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)


_ranks: Ranks | None = None  # None where this run has one process


class Launcher(SubprocessLauncher):
    """Lightning's launcher; child processes exit with their parent, and vice versa."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Start the processes, then run a function in this one."""
        global _ranks
        if not self.cluster_environment.creates_processes_externally:
            folder = Path(tempfile.mkdtemp(prefix="fc-lightning-errors-"))
            os.environ.update({_FOLDER: str(folder), _PARENT: str(os.getpid())})
            try:
                self.start_ranks()
            finally:
                del os.environ[_FOLDER], os.environ[_PARENT]
            _ranks = Ranks(folder, 0, self.procs)
            threading.Thread(target=_ranks.watch, daemon=True, name="ranks").start()
        # The environment now says that the processes exist: Lightning starts none, and watches none.
        return super().launch(function, *args, trainer=trainer, **kwargs)


def configure_in_turns(configure: Callable[[Any], None]) -> Callable[[Any], None]:
    """Let a module's ``configure_model`` load the model once, and unmapped weights on one rank of a machine at a time.

    Each rank copies only its own shards out of weights that are mapped from their files. Weights that are cast or
    merged are complete in a rank's memory until they are sharded: taking turns, a machine has one such copy at a time.
    """

    @functools.wraps(configure)
    def configure_model(module: Any) -> None:
        if module.model is not None:
            return
        if (trainer := attached_trainer(module)) is None or module.device_mesh is None or _is_base_mapped(module):
            configure(module)
            return
        strategy = trainer.strategy
        try:
            for _ in range(strategy.local_rank):
                strategy.barrier()
            configure(module)
        finally:  # after an error too, because the other ranks wait
            for _ in range(strategy.local_rank, strategy.num_processes):
                strategy.barrier()

    return configure_model


def record_error(error: BaseException) -> None:
    """Record an error as soon as it is known, so that follow-up errors are not mistaken for the cause."""
    if _ranks is not None and isinstance(error, Exception):
        _ranks.record(error)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Run a rank, or a run with a single process: on an error, print it and exit with code 1.

    A :class:`UserError` is printed in one line. Others are raised again, or if there are several ranks, printed once
    with their traceback by the first process.
    """
    global _ranks
    _join_parent()
    atexit.register(_destroy_process_group)
    try:
        yield
    except Exception as error:
        atexit.unregister(_destroy_process_group)  # its threads may be waiting for a rank that has failed
        if _ranks is None:
            if not isinstance(error, UserError) and not is_raised_by_lightning(error):
                raise
            print(printable_text(redact(format_error(error))), file=sys.stderr)
            sys.exit(1)
        _ranks.record(error)
        sys.exit(_ranks.end() if _ranks.rank == 0 else 1)
    finally:
        ranks, _ranks = _ranks, None
        if ranks is not None:
            ranks.join()


def format_error(error: BaseException) -> str:
    """An error in one line if the user can fix it, or with its traceback."""
    if isinstance(error, UserError):
        return f"error: {error}"
    if is_raised_by_lightning(error):
        return f"error: trainer: {first_line(error)}"
    return "".join(traceback.format_exception(error)).rstrip()


def is_raised_by_lightning(error: BaseException) -> bool:
    """Whether Lightning's own code has rejected a setting: its messages are one line and say what to do."""
    frames = traceback.extract_tb(error.__traceback__)
    kinds = (ValueError, RuntimeError, MisconfigurationException)
    return type(error) in kinds and bool(frames) and "/lightning/pytorch/" in frames[-1].filename


def _destroy_process_group() -> None:
    """Leave the group of ranks, for use at the exit of a process, as Lightning does for NCCL only.

    Without it, gloo sometimes aborts a process that exits: "terminate called without an active exception" in one of a
    hundred pairs of processes.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _is_base_mapped(module: Any) -> bool:
    precision, has_adapter = str(module.trainer.precision), module.peft is not None
    dtype = base_dtype(precision, module.weight_dtype, has_adapter, bool(module.quantization))
    return is_mapped(module.base, module.revision, getattr(torch, dtype))


def _join_parent() -> None:
    """In a process that :class:`Launcher` has started: exit with the parent and write errors to its folder."""
    global _ranks
    parent, folder = os.environ.pop(_PARENT, None), os.environ.pop(_FOLDER, None)
    if parent is None or folder is None:
        return
    if sys.platform.startswith("linux"):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if parent != str(os.getppid()):
        sys.exit(1)  # the parent exited while this process was starting
    _ranks = Ranks(Path(folder), int(os.environ["LOCAL_RANK"]), [])


def _describe_exit(code: int) -> str:
    """How a process ended that has recorded no error."""
    if code == -signal.SIGKILL:
        return "was killed by SIGKILL (out of memory?)"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def _exit_after(seconds: float) -> None:
    """Exit this process after some time, even if its shutdown hangs."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()
