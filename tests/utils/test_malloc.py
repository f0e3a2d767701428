"""Settings of a CPU's memory."""

import os

import pytest

from fc_lightning.cli.lightning_cli import main

NAME = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


@pytest.mark.parametrize(("yours", "used"), [(None, "256"), ("7", "7")])
def test_the_command_line_limits_the_kernel_cache_unless_you_do(monkeypatch, yours, used):
    monkeypatch.setenv(NAME, yours or "")  # so that it is restored
    if yours is None:
        monkeypatch.delenv(NAME)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert os.environ[NAME] == used
