"""Whether settings fit together, and whether a checkpoint belongs to the model that it is loaded into."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fc_lightning.utils.pretrained import BaseModelError


def check_weights(saved: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that a checkpoint has exactly the weights that this configuration trains.

    Args:
        saved: The weights in the checkpoint, by name.
        expected: The trained weights of the model, by name.

    Raises:
        BaseModelError: If weights are missing from the checkpoint, unknown to the model, or of another shape.
    """
    missing, unknown = sorted(expected.keys() - saved.keys()), sorted(saved.keys() - expected.keys())
    if missing or unknown:
        raise BaseModelError(
            "the checkpoint does not fit the configuration (`model.peft`, `model.special_tokens`, `model.base`): "
            f"{len(missing)} weights are missing from it, {len(unknown)} are unknown, e.g. {(missing + unknown)[0]}"
        )
    for name, weight in expected.items():
        if saved[name].shape != weight.shape:
            raise BaseModelError(
                f"the checkpoint does not fit the configuration (`model.peft`, `model.base`): the shape of {name} is "
                f"{tuple(saved[name].shape)} in the checkpoint and {tuple(weight.shape)} in the model"
            )


def check_base(checkpoint: Mapping[str, Any], base: str, digest: str, vocabulary: str) -> None:
    """Check that a checkpoint was trained on this base and with these token ids.

    Args:
        checkpoint: The checkpoint; an old one has no digests.
        base: The base of this model, as configured.
        digest: Of its weights.
        vocabulary: Digest of its vocabulary.

    Raises:
        BaseModelError: If it was trained on another base.
    """
    if checkpoint.get("vocabulary", vocabulary) != vocabulary:
        raise BaseModelError(
            f"the checkpoint does not fit `model.base` {base}: its token ids belong to another vocabulary"
        )
    saved = checkpoint.get("base", {})
    if saved.get("digest", digest) != digest:
        name = f"{saved['name']}, revision {saved['revision']}" if saved["revision"] else saved["name"]
        raise BaseModelError(
            f"the checkpoint was trained on another base ({name}) than `model.base` {base}: their weights differ"
        )


def check_settings(precision: str, has_adapter: bool, is_quantized: bool) -> None:
    """Check settings that contradict each other.

    Args:
        precision: The trainer's.
        has_adapter: Whether an adapter is trained.
        is_quantized: Whether the base is kept in 4 or 8 bits.

    Raises:
        BaseModelError: If they do.
    """
    if is_quantized and not has_adapter:
        raise BaseModelError("`model.quantization` freezes the base: give it an adapter to train (`model.peft`)")
    if precision.endswith("-true") and not precision.startswith(("32", "64")):
        mixed = precision.removesuffix("-true") + "-mixed"
        raise BaseModelError(
            f"`trainer.precision: {precision}` rounds the adapter and the rotary angles too; use "
            f"{mixed}, which also keeps the frozen base in half precision"
        )


def base_dtype(configured: str, precision: str, has_adapter: bool) -> str:
    """The precision of the base's weights: ``auto`` is bfloat16 under an adapter in bf16 training, else float32."""
    if configured != "auto":
        return configured
    return "bfloat16" if has_adapter and precision.startswith("bf16") else "float32"
