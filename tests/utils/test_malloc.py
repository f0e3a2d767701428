"""Settings of a CPU's memory."""

import os
import subprocess
import sys

import pytest

from fc_lightning.cli.lightning_cli import main
from fc_lightning.utils import malloc

NAME = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


@pytest.mark.parametrize(("yours", "used"), [(None, "256"), ("7", "7")])
def test_the_command_line_limits_the_kernel_cache_unless_you_do(monkeypatch, yours, used):
    monkeypatch.setenv(NAME, yours or "")  # so that it is restored
    if yours is None:
        monkeypatch.delenv(NAME)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert os.environ[NAME] == used


# Prints what the command line would run with, and how often the lines before it have run.
SCRIPT = """
import os, sys, types
print("started", flush=True)
run = lambda args: print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
sys.modules["fc_lightning.cli.lightning_cli"] = types.SimpleNamespace(main=run)
from fc_lightning.cli.main import main
main()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
@pytest.mark.parametrize(
    ("name", "yours", "starts", "used"),
    [
        ("main.py", None, 2, malloc.GLIBC_TUNABLES),
        ("__main__.py", None, 2, malloc.GLIBC_TUNABLES),
        ("fc-lightning", None, 2, malloc.GLIBC_TUNABLES),
        ("main.py", "glibc.malloc.arena_max=2", 1, "glibc.malloc.arena_max=2"),
        ("main.py", "", 1, ""),
        ("train.py", None, 1, "None"),  # a user's script may do anything before
    ],
)
def test_the_command_line_restarts_once_with_settings_of_glibc(tmp_path, monkeypatch, name, yours, starts, used):
    if any(os.path.exists(gpu) for gpu in malloc._GPUS):
        pytest.skip("a GPU")
    (tmp_path / name).write_text(SCRIPT)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if yours is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", yours)
    command = [sys.executable, str(tmp_path / name), "fit", "--config=a file.yaml", "--model.base=é"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = process.communicate()[0].splitlines()
    assert lines == ["started"] * starts + [f"{process.pid} {used} {command[2:]}"]


@pytest.mark.parametrize("why_not", ["GPU", "debugger", "other libc", None])
def test_when_the_command_line_restarts(tmp_path, monkeypatch, why_not):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(malloc, "_GPUS", (str(tmp_path if why_not == "GPU" else tmp_path / "none"),))
    monkeypatch.setattr(malloc, "_glibc", lambda: None if why_not == "other libc" else object())
    monkeypatch.setattr(sys, "gettrace", lambda: print if why_not == "debugger" else None)
    restarts = []
    monkeypatch.setattr(os, "execve", lambda *given: restarts.append(given))
    malloc.restart_with_tunables()
    assert len(restarts) == (why_not is None)
