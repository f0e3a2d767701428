"""A base model that is damaged, or none, is one line about `model.base`, whatever the libraries raise."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fc_lightning.chat_template.tokens import load_tokenizer
from fc_lightning.models.attention import BY_DOCUMENT
from fc_lightning.models.loading import load_base, load_config
from fc_lightning.utils.pretrained import BaseModelError, resolve_base

WIDER = ('"hidden_size": 32', '"hidden_size": 64')


def load(base: str) -> None:
    load_config(base, None)
    load_tokenizer.cache_clear()
    load_tokenizer(base)
    load_base(base, None, torch.float32, BY_DOCUMENT)


def rewrite(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def widen(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().replace(*WIDER))


@pytest.mark.parametrize(
    "damage",
    [
        rewrite("config.json", "{nope"),
        rewrite("config.json", "[]"),
        rewrite("config.json", '{"model_type": "foo"}'),
        rewrite("tokenizer.json", "{}"),
        rewrite("tokenizer.json", "[1"),
        lambda folder: (folder / "model.safetensors").unlink(),
        cut_weights,
        widen,
    ],
)
def test_a_damaged_folder(tmp_path, damage):
    base = tmp_path / "base"
    shutil.copytree("tests/models/tiny_gemma2", base)
    load(str(base))
    damage(base)
    with pytest.raises(BaseModelError, match=r"could (not )?be loaded") as caught:
        load(str(base))
    assert str(caught.value).startswith(str(base))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        ("pypi:", "must be followed by the name of a package"),
        ("pypi:no-such-package", "no-such-package is not installed"),
        ("pypi:json", "this package contains no model"),
    ],
)
def test_a_package_without_a_model(base, reason):
    with pytest.raises(BaseModelError, match=reason):
        resolve_base(base)


def test_a_damaged_gguf_file(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF garbage")
    with pytest.raises(BaseModelError, match=r"model.gguf: the model could not be loaded \(`model.base`\)"):
        resolve_base(str(tmp_path / "model.gguf"))
