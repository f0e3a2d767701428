"""Loads a base under FSDP2 and records this rank's memory meanwhile; started by torchrun.

python -m tests.helpers.sharded_loading BASE ADAPTER FOLDER, where ADAPTER is 1 or 0. A rank writes FOLDER/RANK.json:
times and the bytes of its own, not mapped from files, that it has added by then.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from peft import LoraConfig
from safetensors import safe_open
from torch.utils.data import DataLoader

from fc_lightning.training import module as training_module


class Recorded(training_module.FunctionCallingModule):
    """Records its memory while the model is configured and, if it has an adapter, gathered for a checkpoint."""

    def __init__(self, folder: Path, **settings: object):
        super().__init__(**settings)
        self.folder = folder

    def configure_model(self) -> None:
        process, samples, done = psutil.Process(), [], threading.Event()

        def own_bytes() -> int:
            memory = process.memory_info()
            return memory.rss - memory.shared

        def record() -> None:
            while not done.wait(0.002):
                samples.append((time.monotonic(), own_bytes() - before))

        before = own_bytes()
        sampler = threading.Thread(target=record, daemon=True)
        sampler.start()
        super().configure_model()
        if self.peft is not None:
            saved = self.trainer.strategy.lightning_module_state_dict()
            assert saved.keys() == (self.trained_parameters().keys() if self.global_rank == 0 else set())
        done.set()
        sampler.join()
        self.check_shards()
        (self.folder / f"{self.global_rank}.json").write_text(json.dumps(samples))
        sys.exit()

    def check_shards(self) -> None:
        """Every weight is this rank's rows of the one in the file."""
        weights = {
            name.replace(".base_layer", "").replace("base_model.model.", ""): parameter.to_local()
            for name, parameter in self.named_parameters()
        }
        with safe_open(Path(self.base) / "model.safetensors", framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - the file is not a dictionary
                rows = file.get_tensor(name).chunk(self.trainer.world_size)[self.global_rank]
                torch.testing.assert_close(weights[f"model.{name}"], rows.float(), atol=0, rtol=0, msg=name)


def shard_late(*arguments: object, shard: Callable = training_module.shard) -> None:
    """Shard after some time, so that copies of ranks that load at the same time exist at the same time."""
    time.sleep(3)
    shard(*arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    training_module.shard = shard_late
    base, adapter, folder = sys.argv[1:]
    peft = LoraConfig(r=4, target_modules="all-linear") if adapter == "1" else None
    module = Recorded(Path(folder), base=base, peft=peft, special_tokens=[])
    strategy = ModelParallelStrategy(2, tensor_parallel_size=1, save_distributed_checkpoint=False)
    trainer = Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_checkpointing=False)
    trainer.fit(module, DataLoader([0]))
