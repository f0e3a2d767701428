"""The environment of a run, for who wants to repeat it: versions, commit, devices, command; no secrets."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fc_lightning.utils.secrets import redact_arguments

_PACKAGES = (
    "fc-lightning",
    "torch",
    "lightning",
    "transformers",
    "peft",
    "datasets",
    "tokenizers",
    "torchmetrics",
    "jsonargparse",
    "bitsandbytes",
)


def describe_environment() -> dict[str, Any]:
    """What a run's ``environment.json`` holds, in JSON's types."""
    import torch

    cuda = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": redact_arguments(sys.argv),
        "git": git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "cpu": {"cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "cuda": torch.version.cuda,
        "gpus": [{"name": one.name, "memory_gb": round(one.total_memory / 1e9, 1)} for one in cuda],
    }


def git_state() -> dict[str, Any] | None:
    """The commit of the repository that the command runs in, and whether files differ from it; None without one."""
    commit = _git("rev-parse", "HEAD")
    return {"commit": commit, "changed": bool(_git("status", "--porcelain"))} if commit else None


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
