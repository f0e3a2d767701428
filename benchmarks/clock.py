"""A callback that records the time of every optimizer step. `contenders.py` names it in its configuration."""

import time
from collections import Counter
from typing import Any, ClassVar

from lightning import Callback

from fc_lightning.models.flops import TrainingCost
from fc_lightning.models.lora import unwrap_peft


class Clock(Callback):
    """The command line creates the instance, so the records are kept on the class.

    Attributes:
        ends: Clock readings in seconds: at the start of training, then at the end of each step.
        tokens: Tokens of each step; the last entry is the current step.
        supervised: Supervised tokens of each step, likewise.
        flops: Floating-point operations of each step, likewise.
        matrices: How often each shape, ``(out, in)``, occurs among the frozen matrices of the layers.
    """

    ends: ClassVar[list[float]] = []
    tokens: ClassVar[list[int]] = [0]
    supervised: ClassVar[list[int]] = [0]
    flops: ClassVar[list[float]] = [0.0]
    matrices: ClassVar[Counter[tuple[int, int]]] = Counter()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.cost = TrainingCost.of_model(pl_module.model)
        weights = unwrap_peft(pl_module.model).get_decoder().layers.parameters()
        self.matrices.update(tuple(one.shape) for one in weights if one.dim() == 2 and not one.requires_grad)
        self.ends.append(time.perf_counter())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.tokens[-1] += batch["num_tokens"]
        self.supervised[-1] += batch["num_supervised"]
        self.flops[-1] += self.cost.flops(batch)
        if trainer.global_step == len(self.ends):
            self.ends.append(time.perf_counter())
            self.tokens.append(0)
            self.supervised.append(0)
            self.flops.append(0.0)
