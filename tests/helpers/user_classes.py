"""A module, a data module and a callback as users write them."""

from typing import ClassVar

from fc_lightning import FunctionCallingDataModule, FunctionCallingModule


class LouderModule(FunctionCallingModule):
    """Multiplies the loss, and counts its batches."""

    num_batches: ClassVar[int] = 0

    def __init__(self, loudness: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.loudness = loudness

    def training_step(self, batch, batch_idx):
        LouderModule.num_batches += 1
        return self.loudness * super().training_step(batch, batch_idx)


class ReversedDataModule(FunctionCallingDataModule):
    """Trains on the batches in reverse order."""

    def __init__(self, reverse: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.reverse = reverse
