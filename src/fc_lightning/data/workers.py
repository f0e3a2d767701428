"""Multiprocessing: each process does a part of a task, and the results are merged in order."""

from __future__ import annotations

import gc
import heapq
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from operator import itemgetter
from typing import Any

from fc_lightning.data.sources import DataError, Source

_MAX_PROCESSES = 16  # each needs about 100 MB, and one process receives the results of all
_MIN_BYTES = 8_000_000  # of rows per process, about a second of work
_OBJECTS_PER_COLLECTION = 100_000  # rows are many small objects, almost none of them in cycles

Keyed = tuple[Any, Any]  # a sort key, and a result


def choose_num_processes(sources: Sequence[Source], requested: int | None = None) -> int:
    """Choose the number of processes that read sources.

    Returns:
        The number of processes; 1 where forking is impossible (outside of Linux, in daemonic processes) and for JSON
        files, which are parsed in one piece.
    """
    if (
        sys.platform != "linux"
        or multiprocessing.current_process().daemon
        or not all(map(Source.is_divisible, sources))
    ):
        return 1
    if requested is not None:
        return requested
    return max(1, min(len(os.sched_getaffinity(0)), _MAX_PROCESSES, sum(map(Source.size, sources)) // _MIN_BYTES))


def run_ordered(part: Callable[[int, int], Iterator[Keyed]], processes: int) -> Iterator[Any]:
    """Yield the results of all processes in the order of their keys.

    The processes are forked: they have the registered formats and open datasets of this one, need no importable
    ``__main__``, and start in milliseconds. They run Python and the tokenizer, not torch.

    Args:
        part: Called as ``part(number, processes)`` in each process; yields picklable results with increasing keys.
        processes: Number of processes; 1 runs in this process.

    Raises:
        Exception: Any exception raised by ``part``.
        DataError: If a process is killed.
    """
    if processes == 1:
        thresholds = gc.get_threshold()
        gc.set_threshold(_OBJECTS_PER_COLLECTION)
        try:
            yield from map(itemgetter(1), part(0, 1))
        finally:
            gc.set_threshold(*thresholds)
        return
    context = multiprocessing.get_context("fork")
    workers: list[tuple[Connection, BaseProcess]] = []
    # The processes themselves run in parallel. Set before forking, or the tokenizer warns about each fork.
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        for number in range(processes):
            receiver, sender = context.Pipe(duplex=False)
            worker: BaseProcess = context.Process(
                target=_work, args=(part, number, processes, receiver, sender), daemon=True
            )
            worker.start()
            sender.close()  # so that receiving ends if the process is killed
            workers.append((receiver, worker))
    finally:
        del os.environ["TOKENIZERS_PARALLELISM"]
        os.environ.update({} if before is None else {"TOKENIZERS_PARALLELISM": before})
    try:
        yield from map(itemgetter(1), heapq.merge(*(_received(*worker) for worker in workers), key=itemgetter(0)))
    finally:
        for receiver, worker in workers:
            receiver.close()
            worker.kill()  # not terminate(): the fork may have inherited the trainer's handler
            worker.join()


def _work(
    part: Callable[[int, int], Iterator[Keyed]],
    number: int,
    processes: int,
    receiver: Connection,
    sender: Connection,
) -> None:
    """Run one process: send all results, then None or the exception."""
    receiver.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and kills this process
    gc.freeze()  # inherited objects stay: do not scan, and thereby copy, them
    gc.set_threshold(_OBJECTS_PER_COLLECTION)
    try:
        for keyed in part(number, processes):
            sender.send(keyed)
        sender.send(None)
    except BrokenPipeError:
        pass  # the parent has stopped reading
    except Exception as error:
        sent = error if _is_picklable(error) else RuntimeError(f"{type(error).__name__}: {error}")
        sent.add_note(f"In process {number + 1} of {processes}:\n{traceback.format_exc()}")
        sender.send(sent)


def _is_picklable(error: Exception) -> bool:
    """Whether the parent can unpickle it: an exception may need other arguments than its message."""
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False


def _received(receiver: Connection, worker: BaseProcess) -> Iterator[Keyed]:
    try:
        while (message := receiver.recv()) is not None:
            if isinstance(message, Exception):
                raise message
            yield message
    except EOFError:
        worker.join()
        raise DataError(
            f"a process that prepares data was killed (exit code {worker.exitcode}), perhaps for lack of memory; "
            "lower `data.preparation_processes`"
        ) from None
