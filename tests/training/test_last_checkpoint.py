"""`last` is the checkpoint with the most optimizer steps, and a run resumes exactly there."""

import os
import random
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tests.helpers.checkpoints import FULL
from torch.utils.data import DataLoader

from fc_lightning.callbacks import LastCheckpoint
from fc_lightning.callbacks.resumable import checkpoint_to_resume_from, make_resumable
from fc_lightning.commands.checkpoints import find_checkpoint
from fc_lightning.training.checkpoint_io import AtomicCheckpointIO, last_checkpoint
from fc_lightning.training.run_folders import checkpoint_folders

BATCHES, EPOCHS, ACCUMULATE = 7, 2, 2
STEPS_PER_EPOCH = -(-BATCHES // ACCUMULATE)


class Line(LightningModule):
    """A model with one weight, whose metric goes up and down."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_idx):
        return (self.weight * batch).sum()

    def validation_step(self, batch, batch_idx):
        self.log("val/metric", float(self.global_step % 3))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(torch.ones(BATCHES, 1))

    def val_dataloader(self):
        return DataLoader(torch.ones(1, 1))


class Killed(Exception):
    """Ends a run as a kill would."""


class Stop(Callback):
    """Kills the run after some micro-batches, and records where it started."""

    def __init__(self, after: int):
        self.after, self.started_at = after, None

    def on_train_start(self, trainer, pl_module):
        self.started_at = trainer.global_step

    def on_train_batch_end(self, trainer, *_):
        self.after -= 1
        if self.after == 0:
            raise Killed


def fit(folder: Path, savers, interval: float, stop: int = 0, max_steps: int = -1):
    """One process of a run; returns its trainer, the step that it started at, and whether it was killed."""
    stopper = Stop(stop)
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="line"),
        callbacks=[*(saver() for saver in savers), stopper],
        max_epochs=EPOCHS if max_steps < 0 else -1,
        max_steps=max_steps,
        accumulate_grad_batches=ACCUMULATE,
        val_check_interval=interval,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    make_resumable(trainer)
    try:
        trainer.fit(Line(), ckpt_path=checkpoint_to_resume_from(trainer, "last"))
    except Killed:
        return trainer, stopper.started_at, True
    return trainer, stopper.started_at, False


def steps_on_disk(folder: Path) -> list[int]:
    return [torch.load(file, weights_only=True)["global_step"] for file in folder.rglob("*.ckpt")]


def newest(trainer) -> Path | None:
    return last_checkpoint(checkpoint_folders(trainer))


LAST = [lambda n=n: LastCheckpoint(n) for n in (1, 2, 3, 50)]
BEST = [
    lambda: ModelCheckpoint(monitor="val/metric", mode="max"),
    lambda: ModelCheckpoint(monitor="val/metric", mode="max", save_last=True),
    lambda: ModelCheckpoint(monitor="val/metric", mode="max", save_last="link", save_top_k=2),
]
OTHER = [
    lambda: ModelCheckpoint(every_n_train_steps=2, filename="newest-{step}"),
    lambda: ModelCheckpoint(save_top_k=-1),
    lambda: ModelCheckpoint(save_top_k=0, save_last=True),
]


@settings(max_examples=200 if FULL else 12, deadline=None)
@given(
    savers=st.tuples(*(st.sampled_from([None, *kind]) for kind in (LAST, BEST, OTHER))),
    interval=st.sampled_from([1.0, 0.5, 3]),
    stop=st.integers(1, BATCHES * EPOCHS),
    reverse=st.booleans(),
)
def test_a_killed_run_resumes_from_the_greatest_step(savers, interval, stop, reverse):
    callbacks = [saver for saver in (reversed(savers) if reverse else savers) if saver]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trainer, _, killed = fit(folder, callbacks, interval, stop)
        assert killed
        for file in folder.rglob("*.ckpt"):  # clocks may be wrong
            os.utime(file, (random.Random(stop).random() * 2e9,) * 2)
        steps = steps_on_disk(folder)
        if steps:
            assert torch.load(newest(trainer), weights_only=True)["global_step"] == max(steps)
        trainer, started_at, _ = fit(folder, callbacks, interval)
        assert started_at == max(steps, default=0)
        assert trainer.global_step == STEPS_PER_EPOCH * EPOCHS
        if savers[0]:
            assert max(steps_on_disk(folder)) == trainer.global_step
        assert newest(trainer).parent.parent.name == ("version_0" if steps else "version_1")


@pytest.mark.parametrize("stop", range(1, STEPS_PER_EPOCH + 2))
def test_a_finished_run_with_more_steps_resumes_within_its_epoch(tmp_path, stop):
    """It trains on as many micro-batches as a run that was not interrupted."""
    savers = [lambda: LastCheckpoint(50)]
    fit(tmp_path, savers, 1.0, max_steps=stop)
    trainer, started_at, _ = fit(tmp_path, savers, 1.0, max_steps=2 * STEPS_PER_EPOCH + 1)
    assert started_at == stop
    expected = 2 * BATCHES + ACCUMULATE
    assert trainer.fit_loop.epoch_loop.batch_progress.total.ready == expected
    assert trainer.fit_loop.epoch_loop.batch_progress.current.ready == ACCUMULATE


def test_the_final_state_knows_the_best(tmp_path):
    """The last validation may find a new best after the last step has been saved."""
    savers = [LAST[0], BEST[0]]
    fit(tmp_path, savers, 1.0, max_steps=STEPS_PER_EPOCH)
    (last,) = tmp_path.rglob("last.ckpt")
    states = torch.load(last, weights_only=True)["callbacks"]
    (state,) = (state for name, state in states.items() if name.startswith("ModelCheckpoint"))
    assert Path(state["best_model_path"]).is_file()


@pytest.mark.parametrize("reverse", [False, True], ids=["in order", "reversed"])
def test_best_is_the_best_of_the_callback_that_monitors(tmp_path, reverse):
    savers = [LAST[0], OTHER[0], BEST[0]]
    trainer, _, _ = fit(tmp_path, [*reversed(savers)] if reverse else savers, 0.5)
    (monitoring,) = (saver for saver in trainer.checkpoint_callbacks if getattr(saver, "monitor", None))
    assert float(monitoring.best_model_score) == 2.0  # the greatest of steps modulo three
    best = find_checkpoint(trainer, "best")
    assert best == Path(monitoring.best_model_path)
    assert torch.load(best, weights_only=True)["global_step"] % 3 == 2


def test_the_newest_run_counts_and_not_the_one_with_most_steps(tmp_path):
    io = AtomicCheckpointIO()
    for run, step in (("version_9", 50), ("version_10", 2), ("version_2", 70)):
        io.save_checkpoint({"global_step": step}, tmp_path / "line" / run / "checkpoints" / "last.ckpt")
    io.save_checkpoint({"global_step": 1}, tmp_path / "line" / "version_10" / "checkpoints" / "best.ckpt")
    trainer = Trainer(accelerator="cpu", logger=CSVLogger(tmp_path, name="line"), enable_progress_bar=False)
    assert newest(trainer) == tmp_path / "line" / "version_10" / "checkpoints" / "last.ckpt"
    newest(trainer).write_bytes(b"damaged")
    assert newest(trainer) == tmp_path / "line" / "version_10" / "checkpoints" / "best.ckpt"


def test_what_a_killed_process_has_left_is_removed(tmp_path):
    """A kill after a checkpoint was written and before the one that it replaces was removed."""
    savers = [LAST[0], BEST[0], OTHER[0]]
    kept = {}

    class Kill(Exception):
        pass

    def remove(saver, trainer, path):
        kept[path] = Path(path).read_bytes()
        raise Kill

    for remaining in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if not remaining:
                patch.setattr(ModelCheckpoint, "_remove_checkpoint", remove)
                with pytest.raises(Kill):
                    fit(tmp_path, savers, 0.5)
                (surplus,) = kept
                assert Path(surplus).is_file()
                Path(surplus).with_name("mine.ckpt").write_bytes(b"not a checkpoint")
                Path(surplus).with_name("removed.adapter").mkdir()
            else:
                fit(tmp_path, savers, 0.5)
    assert not Path(surplus).exists()
    names = sorted(path.name for path in tmp_path.rglob("*.ckpt"))
    assert "mine.ckpt" in names
    assert not list(tmp_path.rglob("*.adapter"))
    assert len(names) == 4  # the best, the newest by Lightning, ours, and the stranger
