"""Runs the command line several times in one process; started by torchrun, in several processes at once.

python sweep.py JOBS.json, where the file holds a list of lists of arguments.
"""

import json
import sys
from pathlib import Path

import torch

from fc_lightning.cli.lightning_cli import main

if __name__ == "__main__":
    torch.set_num_threads(1)
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        main(arguments)
