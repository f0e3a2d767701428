"""Damaged checkpoints are recognized, and the intact one before is offered."""

import random

import pytest
import torch
from tests.helpers.checkpoints import same

from fc_lightning.training.checkpoint_io import (
    AtomicCheckpointIO,
    CheckpointError,
    is_intact,
    last_checkpoint,
    read_checkpoint,
)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    io = AtomicCheckpointIO()
    content = {"state_dict": {f"layer{n}": torch.randn(16, 16) for n in range(6)}, "optimizer_states": [{"step": 3}]}
    io.save_checkpoint({**content, "global_step": 1}, tmp_path / "step=1.ckpt")
    io.save_checkpoint({**content, "global_step": 2}, tmp_path / "step=2.ckpt")
    return tmp_path / "step=2.ckpt"


def check_recognised(path):
    assert not is_intact(path)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: cannot be read as a checkpoint: ")
    assert f"--ckpt_path {path.parent / 'step=1.ckpt'}" in str(caught.value)
    assert last_checkpoint([path.parent]) == path.parent / "step=1.ckpt"


def test_truncated(checkpoint):
    data = checkpoint.read_bytes()
    assert is_intact(checkpoint)
    rng = random.Random(0)
    # Anywhere, and all over the end, where an archive has its directory.
    lengths = [
        0,
        1,
        *rng.sample(range(len(data)), 58),
        *(len(data) - cut for cut in (1, 2, 63, 64, 65, 84, 85, 86, 87)),
    ]
    lengths += [len(data) - cut for cut in rng.sample(range(3, 400), 31)]
    assert len(lengths) == 100
    for length in lengths:
        checkpoint.write_bytes(data[:length])
        check_recognised(checkpoint)


def test_flipped_bits(checkpoint):
    """No flipped bit changes what is loaded: it is recognized, or it is in a byte of the archive without a meaning."""
    data, content = checkpoint.read_bytes(), read_checkpoint(checkpoint)
    rng = random.Random(0)
    num_recognised = 0
    places = rng.sample(range(len(data)), 70) + [len(data) - 1 - at for at in rng.sample(range(200), 30)]
    assert len(places) == 100
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randrange(8)
        checkpoint.write_bytes(flipped)
        if is_intact(checkpoint):
            assert same(read_checkpoint(checkpoint), content)
        else:
            check_recognised(checkpoint)
            num_recognised += 1
    assert num_recognised > 80


def test_a_checkpoint_with_the_checksum_of_an_earlier_version(checkpoint):
    """It follows the archive, and is ignored."""
    content = read_checkpoint(checkpoint)
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data + b"\nfc-lightning sha256 " + b"0" * 64 + b"\n")
    assert same(read_checkpoint(checkpoint), content)


def test_a_checkpoint_of_lightning_itself(tmp_path):
    path = tmp_path / "plain.ckpt"
    torch.save({"state_dict": {"weight": torch.arange(1000)}}, path)
    assert torch.equal(read_checkpoint(path)["state_dict"]["weight"], torch.arange(1000))
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(500, 510).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    assert not is_intact(path)


def test_nothing_that_could_not_be_loaded_again_is_kept(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"bad.ckpt: was discarded.* more than tensors and plain data .*PosixPath"
    ):
        AtomicCheckpointIO().save_checkpoint({"state": tmp_path}, tmp_path / "bad.ckpt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_weights_that_are_not_finite_are_never_written(checkpoint, value):
    last = checkpoint.with_name("last.ckpt")
    with pytest.raises(CheckpointError, match=r"the weights are not finite, or too large .* \(first in bad\)"):
        AtomicCheckpointIO().save_checkpoint(
            {"global_step": 3, "state_dict": {"good": torch.ones(2), "bad": torch.tensor([0.0, value])}}, last
        )
    assert not last.exists()


@pytest.mark.parametrize("missing", ["state_dict", "global_step", "epoch", "pytorch-lightning_version"])
def test_a_checkpoint_without_a_part_that_is_needed(tmp_path, missing):
    content = {"state_dict": {}, "global_step": 1, "epoch": 0, "pytorch-lightning_version": "2.6.0"}
    torch.save(content, tmp_path / "a.ckpt")
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt") == content
    del content[missing]
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=f"it has no `{missing}`"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
