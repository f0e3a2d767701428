"""The private names of transformers that this package depends on, each with its reason."""

from __future__ import annotations

from transformers import PretrainedConfig


def attention_implementation(config: PretrainedConfig) -> str:
    """The attention implementation that a loaded model uses.

    transformers takes it as the public argument ``attn_implementation`` and has no public name to read it back.
    """
    return str(config._attn_implementation)
