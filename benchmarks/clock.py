"""A callback that keeps the time of every optimizer step, for `contenders.py`, which names it in a recipe."""

import time
from typing import Any, ClassVar

from lightning import Callback


class Clock(Callback):
    """Where the command line makes the instance, what it has seen is found on the class.

    Attributes:
        ends: Seconds at the start, and at the end of each step.
        tokens: Of each step; the last is that of the step under way.
        supervised: The same of supervised tokens.
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
