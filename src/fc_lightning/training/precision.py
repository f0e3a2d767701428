"""Derives the dtype of the base's weights from the training precision."""

from __future__ import annotations

from fc_lightning.utils.pretrained import BaseModelError


def base_dtype(precision: str, dtype: str, has_adapter: bool, is_quantized: bool) -> str:
    """The name of the dtype to load the base in, from the trainer's precision and ``model.dtype``.

    Raises:
        BaseModelError: If training in this precision gives wrong results, or nothing is trained.
    """
    if is_quantized and not has_adapter:
        raise BaseModelError("`model.quantization` freezes the base: give it an adapter to train (`model.peft`)")
    if precision.endswith("-true") and not precision.startswith(("32", "64")):
        mixed = precision.removesuffix("-true") + "-mixed"
        raise BaseModelError(
            f"`trainer.precision: {precision}` rounds the adapter and the rotary angles too; use {mixed}, which also "
            "keeps the frozen base in half precision"
        )
    if dtype != "auto":
        return dtype
    return "bfloat16" if has_adapter and precision.startswith("bf16") else "float32"
