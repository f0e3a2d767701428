"""Under FSDP2 no rank keeps more of the base than its shards, and a machine never has a copy for each rank."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "tests" / "models" / "tiny_gemma2"
NOISE = 30 * 2**20  # adapters, tokenizer, allocator


def large_base(folder: Path, dtype: torch.dtype) -> int:
    """Write a random base that takes about 300 MB in fp32; returns that size."""
    shutil.copytree(TINY, folder)
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 6}
    config = Gemma2Config.from_pretrained(TINY, layer_types=["full_attention"] * 6, dtype=dtype, **sizes)
    model = Gemma2ForCausalLM(config).to(dtype)
    model.save_pretrained(folder)
    return 4 * sum(parameter.numel() for parameter in model.parameters())


def own_memory(base: Path, adapter: bool, folder: Path) -> list[np.ndarray]:
    """The memory that each of two ranks has added while it loaded the base, at the same points in time."""
    folder.mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "tests.helpers.sharded_loading", str(base), str(int(adapter)), str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    ranks = [np.array(json.loads((folder / f"{rank}.json").read_text())) for rank in range(2)]
    times = np.union1d(ranks[0][:, 0], ranks[1][:, 0])
    return [np.interp(times, samples[:, 0], samples[:, 1], left=0) for samples in ranks]


@pytest.mark.slow
def test_a_rank_reads_and_saves_without_a_copy_of_the_base(tmp_path):
    size = large_base(tmp_path / "base", torch.float32)
    for added in own_memory(tmp_path / "base", True, tmp_path / "memory"):
        assert 0.4 * size < added.max() < size / 2 + NOISE


@pytest.mark.slow
def test_ranks_cast_one_after_the_other(tmp_path):
    size = large_base(tmp_path / "base", torch.bfloat16)
    one, other = own_memory(tmp_path / "base", False, tmp_path / "memory")
    largest = size / 6  # a layer, while it is sharded
    assert 0.9 * size < one.max() < size + largest + NOISE
    assert 0.9 * size < other.max() < size + largest + NOISE
    assert (one + other).max() < 1.5 * size + largest + NOISE
