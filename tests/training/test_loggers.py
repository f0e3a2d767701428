"""Loggers whose folders are chosen at the same time."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger

from fc_lightning.callbacks import ExtraLogger
from fc_lightning.training.loggers import make_robust


def test_runs_that_start_at_the_same_time_have_a_folder_each(tmp_path):
    """Without a reservation most of them would choose the same."""
    together = Barrier(8)

    def choose(_):
        logger = CSVLogger(tmp_path, name="runs")
        make_robust(logger)
        make_robust(logger)  # a second time changes nothing
        together.wait()
        return logger.log_dir

    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(choose, range(8)))
    assert sorted(folders) == [str(tmp_path / "runs" / f"version_{number}") for number in range(8)]


def test_a_fast_dev_run_logs_nowhere(tmp_path):
    """Lightning has replaced the trainer's own loggers."""
    logger = CSVLogger(tmp_path)
    for fast_dev_run in (False, True):
        trainer = Trainer(accelerator="cpu", logger=False, fast_dev_run=fast_dev_run)
        ExtraLogger(logger).setup(trainer, None, "fit")
        assert (logger in trainer.loggers) is not fast_dev_run
