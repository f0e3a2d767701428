"""A training step counted without a GPU: it waits for the device once, and the memory estimate is near the peak."""

import shutil
import subprocess
import sys

import pytest


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_a_step_waits_once_and_the_estimate_is_near_the_peak(tmp_path):
    page = tmp_path / "counted.md"
    command = [sys.executable, "benchmarks/gpu_counted.py", "--models", "Gemma 3 270M", "--lengths", "512"]
    subprocess.run([*command, "--output", str(page)], check=True)
    header, _, *rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    names = [name.strip() for name in header.strip("|").split("|")]
    found = [dict(zip(names, map(str.strip, row.strip("|").split("|")), strict=True)) for row in rows]
    assert [row["checkpointing"] for row in found] == ["off", "on"]
    for row in found:
        assert (row["waits"], row["waits, step"]) == ("0", "1")
        estimate = float(row["estimate, GB"].split()[0])
        assert estimate == pytest.approx(float(row["peak, GB"]), rel=0.1)
