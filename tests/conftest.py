"""Fixtures: a cache of the test session's own, the tiny model, and the command line in this process."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
TINY = ROOT / "configs" / "debug" / "tiny.yaml"

# Small models are faster on one thread, and a process whose torch has made threads cannot be forked.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _at_the_root(tmp_path_factory: pytest.TempPathFactory):
    """Tests run from the root, with an empty cache that child processes see too."""
    os.environ["FC_LIGHTNING_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["HF_HUB_OFFLINE"] = "1"
    before = Path.cwd()
    os.chdir(ROOT)
    yield
    os.chdir(before)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Runs a subcommand with the tiny recipe; returns the folder of its run."""
    from fc_lightning.cli.lightning_cli import main

    def run(subcommand: str, *arguments: str, config: Path = TINY) -> Path:
        folder = f"--trainer.logger.init_args.save_dir={tmp_path / 'runs'}"
        main([subcommand, "--config", str(config), folder, *arguments])
        return max((tmp_path / "runs").glob("*/version_*"), key=lambda path: path.stat().st_mtime, default=tmp_path)

    return run
