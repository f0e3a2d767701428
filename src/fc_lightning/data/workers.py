"""Processes that share a task: each does its part of it, and the results come back in order."""

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

_MAX_PROCESSES = 16  # a process more needs some 100 MB, and all of them hand their results to one
_SHARE = 8_000_000  # bytes of rows that are worth a process, about a second's work

Keyed = tuple[Any, Any]  # a key that gives the order, and a result


def processes_for(sources: Sequence[Source], asked: int | None = None) -> int:
    """How many processes share the reading of sources.

    Args:
        sources: Where rows come from.
        asked: How many are wanted; by default one for each core that this process may use, if there is enough to do.

    Returns:
        1 where processes cannot be copied (outside of Linux, or within a process that may have no children), and for
        JSON files, which are parsed as a whole.
    """
    if (
        sys.platform != "linux"
        or multiprocessing.current_process().daemon
        or not all(map(Source.is_divisible, sources))
    ):
        return 1
    if asked is not None:
        return asked
    return max(1, min(len(os.sched_getaffinity(0)), _MAX_PROCESSES, sum(map(Source.size, sources)) // _SHARE))


def in_order(part: Callable[[int, int], Iterator[Keyed]], processes: int) -> Iterator[Any]:
    """The results of all processes, in the order of their keys.

    The processes are copies of this one (``fork``): they know its registered formats and open data sets, need no
    ``__main__`` that can be imported again, and start in milliseconds. They run Python and the tokenizer, no torch.

    Args:
        part: Called as ``part(number, processes)`` in each process. What it yields can be pickled, its keys grow.
        processes: How many; 1 calls it here.

    Raises:
        Exception: Whatever ``part`` raises.
        DataError: If a process is ended from outside.
    """
    if processes == 1:
        yield from map(itemgetter(1), part(0, 1))
        return
    context = multiprocessing.get_context("fork")
    workers: list[tuple[Connection, BaseProcess]] = []
    # The processes are what runs side by side. Said before they are made, or the tokenizer warns of each.
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        for number in range(processes):
            receiver, sender = context.Pipe(duplex=False)
            worker: BaseProcess = context.Process(
                target=_work, args=(part, number, processes, receiver, sender), daemon=True
            )
            worker.start()
            sender.close()  # so that there is an end to receive if the process is gone
            workers.append((receiver, worker))
    finally:
        del os.environ["TOKENIZERS_PARALLELISM"]
        os.environ.update({} if before is None else {"TOKENIZERS_PARALLELISM": before})
    try:
        yield from map(itemgetter(1), heapq.merge(*(_received(*worker) for worker in workers), key=itemgetter(0)))
    finally:
        for receiver, worker in workers:
            receiver.close()
            worker.kill()  # a handler of SIGTERM might be a copy of the trainer's
            worker.join()


def _work(
    part: Callable[[int, int], Iterator[Keyed]],
    number: int,
    processes: int,
    receiver: Connection,
    sender: Connection,
) -> None:
    """One process: send all results, then None, or what was raised."""
    receiver.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked is interrupted too, and ends this one
    gc.freeze()  # what it knows from before stays: nothing there needs to be searched for garbage, or copied
    gc.set_threshold(100_000)  # rows are many small objects, and hardly any of them refer to themselves
    try:
        for keyed in part(number, processes):
            sender.send(keyed)
        sender.send(None)
    except BrokenPipeError:
        pass  # nobody wants more
    except Exception as error:
        told = error if _can_travel(error) else RuntimeError(f"{type(error).__name__}: {error}")
        told.add_note(f"In process {number + 1} of {processes}:\n{traceback.format_exc()}")
        sender.send(told)


def _can_travel(error: Exception) -> bool:
    """Whether the process that asked can make it again; a library's own may want other arguments than its message."""
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
            f"a process that prepares data was ended (exit code {worker.exitcode}), perhaps for want of memory; "
            "`data.preparation_processes` says how many there may be"
        ) from None
