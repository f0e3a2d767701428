"""Settings of a CPU's memory."""

import os

from fc_lightning.utils.malloc import limit_kernel_cache

NAME = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


def test_the_kernel_cache_is_limited_unless_you_set_it(monkeypatch):
    monkeypatch.setenv(NAME, "7")
    limit_kernel_cache()
    assert os.environ[NAME] == "7"
    monkeypatch.delenv(NAME)
    limit_kernel_cache()
    assert os.environ[NAME] == "256"
