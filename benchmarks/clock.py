"""A callback that records the time of every optimizer step. `contenders.py` names it in its configuration."""

import time
from typing import Any, ClassVar

from lightning import Callback


class Clock(Callback):
    """The command line creates the instance, so the records are kept on the class.

    Attributes:
        ends: Clock readings in seconds: at the start of training, then at the end of each step.
        tokens: Tokens of each step; the last entry is the current step.
        supervised: Supervised tokens of each step, likewise.
    """

    ends: ClassVar[list[float]] = []
    tokens: ClassVar[list[int]] = [0]
    supervised: ClassVar[list[int]] = [0]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.tokens[-1] += batch["num_tokens"]
        self.supervised[-1] += batch["num_supervised"]
        if trainer.global_step == len(self.ends):
            self.ends.append(time.perf_counter())
            self.tokens.append(0)
            self.supervised.append(0)
