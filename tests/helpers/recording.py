"""A callback that writes down which documents each rank trains on."""

import json
import os
from pathlib import Path

from lightning import Callback


class IdRecorder(Callback):
    """Writes a line a micro-batch to ``$RECORD.RANK``."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        with Path(f"{os.environ['RECORD']}.{trainer.global_rank}").open("a") as file:
            file.write(json.dumps(batch["ids"]) + "\n")
