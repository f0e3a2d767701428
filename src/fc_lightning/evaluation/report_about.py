"""Metadata shown in a report: command, date, machine and package versions of a run."""

from __future__ import annotations

import json
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

from fc_lightning.utils.atomic_files import write_text

ABOUT_FILE = "report.json"


def about_environment(environment: dict[str, Any]) -> dict[str, str]:
    """The lines that come from a run's ``environment.json``."""
    packages = environment["packages"]
    names = ("fc-lightning", "torch", "transformers", "peft", "lightning")
    versions = [f"{name} {packages[name]}" for name in names if name in packages]
    git = environment.get("git")
    if git:
        versions.append(f"commit {git['commit'][:10]}{' with uncommitted changes' if git['changed'] else ''}")
    program, *arguments = environment["command"]
    command = f"python {program}" if program.endswith(".py") else Path(program).name
    started = datetime.fromisoformat(environment["started"])
    return {
        "command": " ".join([command, *map(shlex.quote, arguments)]),
        "date": f"{started:%Y-%m-%d %H:%M} UTC",
        "machine": _machine(environment),
        "versions": ", ".join(versions),
    }


def read_about(folder: Path) -> dict[str, str]:
    """What the report of a run's folder is of; without a report, what the environment says."""
    report, environment = folder / ABOUT_FILE, folder / "environment.json"
    if report.is_file():
        return json.loads(report.read_text(encoding="utf-8"))
    return about_environment(json.loads(environment.read_text(encoding="utf-8"))) if environment.is_file() else {}


def write_about(folder: Path, about: dict[str, str]) -> None:
    """Write what the report of a run's folder is of, for reports that compare runs."""
    write_text(folder / ABOUT_FILE, json.dumps(about, indent=2, ensure_ascii=False) + "\n")


def _machine(environment: dict[str, Any]) -> str:
    cpu = environment["cpu"]
    parts = [f"{cpu['cores']} cores{' of ' + cpu['name'] if cpu.get('name') else ''}"]
    parts += [f"{gpu['name']}, {gpu['memory_gb']} GB" for gpu in environment["gpus"]]
    ranks = environment.get("ranks", 1)
    return ", ".join([*parts, environment["platform"], *([f"{ranks} processes"] if ranks > 1 else [])])
