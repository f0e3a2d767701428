"""What the tests of checkpoints share: callbacks that write down what a run does and save it at every moment."""

import json
import os
import signal
from pathlib import Path

import torch
from lightning import Callback

FULL = os.environ.get("FAULTS") == "full"  # the whole counts; a sample of them otherwise


class Recorder(Callback):
    """Writes a line to ``FILE.RANK`` for each micro-batch and each validation, numbers bit by bit.

    With ``folder`` it saves a checkpoint in every hook of the first ``until`` events, and writes down which events are
    before its place: those up to the end of the last optimizer step, and of a validation that came right after it.
    """

    def __init__(self, file: str, folder: str | None = None):
        self.file, self.folder = file, folder
        self.events = self.settled = self.step = 0
        self.saved: dict[str, int] = {}

    def tell(self, trainer, **event):
        self.events += 1
        with Path(f"{self.file}.{trainer.global_rank}").open("a") as file:
            file.write(json.dumps(event) + "\n")

    def save(self, trainer, moment: str):
        if self.folder and not trainer.sanity_checking:
            name = f"{len(self.saved):03d}-{moment}.ckpt"
            self.saved[name] = self.settled
            trainer.save_checkpoint(Path(self.folder) / name)
            if trainer.is_global_zero:
                (Path(self.folder) / "saved.json").write_text(json.dumps(self.saved))

    def on_train_start(self, trainer, module):
        self.step = trainer.global_step

    def on_train_batch_start(self, trainer, *_):
        self.save(trainer, "batch-start")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        stepped = trainer.global_step > self.step
        loss = float(trainer.callback_metrics["train/loss"]).hex() if stepped else None
        rates = [group["lr"].hex() for group in trainer.optimizers[0].param_groups]
        self.tell(trainer, ids=batch["ids"], step=trainer.global_step, loss=loss, rates=rates)
        if stepped:
            self.step, self.settled = trainer.global_step, self.events
        self.save(trainer, "batch-end")

    def on_validation_batch_end(self, trainer, *_):
        self.save(trainer, "within-validation")

    def on_validation_end(self, trainer, module):
        if trainer.sanity_checking:
            return
        right_after_a_step = self.settled == self.events
        self.tell(trainer, validated=trainer.global_step, loss=float(trainer.callback_metrics["val/loss"]).hex())
        self.settled = self.events if right_after_a_step else self.settled
        self.save(trainer, "validation-end")

    def on_train_epoch_end(self, trainer, *_):
        self.save(trainer, "epoch-end")


class Killed(Exception):
    """Ends a run in its middle, as a kill would."""


class RaiseAfter(Callback):
    """Raises :class:`Killed` when the step after these begins."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.steps:
            raise Killed


class Killer(Callback):
    """Kills its process, as nobody can prevent it, behind so many micro-batches or within the checkpoint after them."""

    def __init__(self, after: int, saving: bool):
        self.left, self.saving = after, saving

    def die(self, *_):
        os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, trainer, *_):
        self.left -= 1
        if self.left == 0 and self.saving:
            Path.replace = self.die  # when the next checkpoint is to get its name
        elif self.left == 0:
            self.die()


def events(file: Path, rank: int = 0) -> list[dict]:
    path = Path(f"{file}.{rank}")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def state_of(checkpoint: Path) -> dict:
    """Weights, optimizer and schedule."""
    state = torch.load(checkpoint, weights_only=True)
    return {name: state[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")}


def same(one, other) -> bool:
    """Bit-identical."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
