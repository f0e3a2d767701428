"""The private names of transformers that this package depends on, each with its reason."""

from __future__ import annotations

from transformers import PretrainedConfig


def attention_implementation(config: PretrainedConfig) -> str:
    """The attention implementation that a loaded model uses.

    transformers takes it as the public argument ``attn_implementation`` and has no public name to read it back.
    """
    return str(config._attn_implementation)


def set_attention_implementation(config: PretrainedConfig, name: str) -> None:
    """Let a loaded model use another attention implementation for its next forward passes.

    The public ``set_attn_implementation`` checks kernels and rewrites the configurations of submodules, each time.
    """
    config._attn_implementation = name
