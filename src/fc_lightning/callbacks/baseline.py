"""Whether an evaluation is that of the untouched base, before training."""

from __future__ import annotations

import math

from lightning import Trainer


def is_baseline(trainer: Trainer) -> bool:
    """Whether this is the complete validation before training (``trainer.num_sanity_val_steps: -1``)."""
    return trainer.sanity_checking and math.isinf(trainer.num_sanity_val_steps)


def is_partial_sanity_check(trainer: Trainer) -> bool:
    """Whether this is a validation before training on a part of the data, which compares with nothing."""
    return trainer.sanity_checking and not math.isinf(trainer.num_sanity_val_steps)
