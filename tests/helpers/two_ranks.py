"""Runs the recorded run of the resume tests on two ranks; started by torchrun.

python -m tests.helpers.two_ranks JOBS.json, where the file holds a list of [folder, name, arguments, whether to save at
every moment, from how many of these moments to resume].
"""

import json
import random
import sys
import time
from pathlib import Path

import torch
from tests.helpers.checkpoints import FULL
from tests.helpers.resume_runs import fit

if __name__ == "__main__":
    torch.set_num_threads(1)
    for folder, name, arguments, save, count in json.loads(Path(sys.argv[1]).read_text()):
        ddp = ["--trainer.devices=2", "--trainer.strategy=ddp", *arguments]
        folder = Path(folder)
        fit(folder, name, *ddp, save=save)
        time.sleep(1)
        if save and name == "whole":
            saved = list(json.loads((folder / "saved" / "saved.json").read_text()))
            chosen = saved if FULL else random.Random(0).sample(saved, count)
            (folder / "chosen.json").write_text(json.dumps(chosen))
            for one in chosen:
                fit(folder, one, *ddp, f"--ckpt_path={folder / 'saved' / one}")
