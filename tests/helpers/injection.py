"""Callbacks that bring trouble into a run, each at a place and on a rank of its choice."""

import gc
import hashlib
import json
import os
import threading
import time
from pathlib import Path

import torch
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger


class Moment(Callback):
    """Says when a run is in the middle of something: writes the process's id to ``FOLDER/RANK`` and stays for a while.

    Args:
        folder: Where.
        moment: ``step``, ``validation``, ``generation`` or ``saving``.
        step: Optimizer steps that are to be behind it.
        seconds: How long it stays.
    """

    def __init__(self, folder: str, moment: str, step: int = 2, seconds: float = 2.0):
        self.folder, self.moment, self.step, self.seconds = Path(folder), moment, step, seconds
        self.begun = 0

    def _now(self, trainer, moment):
        if moment != self.moment or trainer.sanity_checking or trainer.global_step < self.step:
            return
        file = self.folder / str(trainer.global_rank)
        if not file.exists():
            partial = file.with_suffix(".partial")
            partial.write_text(str(os.getpid()))
            partial.rename(file)
            time.sleep(self.seconds)

    def on_train_start(self, trainer, pl_module):
        texts = pl_module.turn_generator.texts

        def slow(*args, **kwargs):
            self._now(trainer, "generation")
            return texts(*args, **kwargs)

        pl_module.turn_generator.texts = slow

    def on_before_backward(self, trainer, pl_module, loss):
        self._now(trainer, "step")

    def on_validation_start(self, trainer, pl_module):
        self.begun += 1
        if trainer.is_global_zero:
            (self.folder / "validations").write_text(str(self.begun))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self._now(trainer, "validation")

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self._now(trainer, "saving")


class Fault(Callback):
    """Raises on one rank after so many optimizer steps.

    Args:
        where: ``training``, ``validation``, ``collator``, ``callback``, or ``nothing``: then the run goes on.
        rank: On which.
        step: After how many.
        folder: Where ``raised`` is written just before, and by ``nothing`` each rank's process id to ``RANK``.
    """

    def __init__(self, where: str, rank: int, step: int = 2, folder: str = "."):
        self.where, self.rank, self.step, self.folder = where, rank, step, Path(folder)

    def setup(self, trainer, pl_module, stage):
        if trainer.global_rank != self.rank:
            return
        if self.where in ("training", "validation"):
            name = f"{self.where}_step"
            step = getattr(pl_module, name)

            def broken(batch, batch_idx, dataloader_idx=0):
                self._fail(trainer)
                return step(batch, batch_idx, *([dataloader_idx] if self.where == "validation" else []))

            setattr(pl_module, name, broken)
        elif self.where == "collator":
            from fc_lightning.data import packing

            collate, calls = packing.PackingCollator.__call__, []

            def broken_collator(collator, packs):
                calls.append(packs)
                if len(calls) > 2 * self.step:
                    self._raise()
                return collate(collator, packs)

            packing.PackingCollator.__call__ = broken_collator

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_rank == self.rank and self.where == "callback":
            self._fail(trainer)
        if self.where == "nothing" and trainer.global_step >= self.step:
            file = self.folder / str(trainer.global_rank)
            if not file.exists():
                partial = file.with_suffix(".partial")
                partial.write_text(str(os.getpid()))
                partial.rename(file)

    def _fail(self, trainer):
        if trainer.global_step >= self.step and not trainer.sanity_checking:
            self._raise()

    def _raise(self):
        (self.folder / "raised").touch()
        raise ValueError("planted")


class NotANumber(Callback):
    """Makes a loss or the gradients infinite or NaN on one rank in one micro-batch; writes down what the run did.

    ``FOLDER/RANK.jsonl`` has a line a micro-batch: how many optimizer steps were done, the ids, and a digest of the
    weights after it; and a last line, with the weights when the run ended.
    """

    def __init__(self, folder: str, rank: int, batches: list[int], what: str = "loss"):
        self.folder, self.rank, self.batches, self.what = Path(folder), rank, batches, what

    def _write(self, trainer, pl_module, ids):
        line = {"steps": trainer.global_step, "ids": ids, "weights": digest(pl_module)}
        with (self.folder / f"{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def setup(self, trainer, pl_module, stage):
        step = pl_module.training_step

        def broken(batch, batch_idx):
            loss = step(batch, batch_idx)
            if trainer.global_rank != self.rank or batch_idx not in self.batches:
                return loss
            if self.what == "gradient":
                loss.register_hook(lambda gradient: gradient * float("inf"))
                return loss
            spoiled = loss * float("nan")
            pl_module._window[-1] = pl_module._window[-1]._replace(loss=spoiled.detach())
            return spoiled

        pl_module.training_step = broken

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._write(trainer, pl_module, batch["ids"])

    def on_exception(self, trainer, pl_module, exception):
        self._write(trainer, pl_module, None)


class Usage(Callback):
    """Writes a line to ``FILE`` after each validation: what the process holds of memory, threads and files."""

    def __init__(self, file: str):
        self.file = Path(file)

    def on_validation_end(self, trainer, pl_module):
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        line = {
            "step": trainer.global_step,
            "bytes": pages * os.sysconf("SC_PAGE_SIZE"),
            "threads": threading.active_count(),
            "tasks": len(os.listdir("/proc/self/task")),
            "files": len(os.listdir("/proc/self/fd")),
        }
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")


class KeyedLogger(CSVLogger):
    """A logger that is given what nobody else may learn."""

    def __init__(self, save_dir: str, name: str = "tiny", api_key: str = "", tracking_uri: str = "", note: str = ""):
        super().__init__(save_dir, name)
        self.given = (api_key, tracking_uri, note)


def digest(module) -> str:
    """A fingerprint of what is trained."""
    trained = [parameter.detach() for parameter in module.parameters() if parameter.requires_grad]
    data = torch.cat([parameter.flatten().float() for parameter in trained]).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()
