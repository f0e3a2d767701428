"""Loading a base model, its configuration, and the fingerprint by which checkpoints recognise it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from fc_lightning.utils.errors import first_line
from fc_lightning.utils.pretrained import BaseModelError, resolve_base


def load_base(
    base: str,
    revision: str | None,
    dtype: torch.dtype,
    attention: str,
    quantization: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Load a base model.

    Args:
        base: See :func:`fc_lightning.utils.pretrained.resolve_base`.
        revision: Revision on the hub.
        dtype: Precision of the weights.
        attention: An attention implementation of transformers.
        quantization: Fields of ``BitsAndBytesConfig``, to keep the matrices in 4 or 8 bits.
        device: Where to load a quantized model. Other models are loaded into main memory.

    Raises:
        BaseModelError: If there is no such model, or it cannot be quantized.
    """
    extra: dict[str, Any] = {}
    if quantization:
        settings = {"bnb_4bit_compute_dtype": dtype, **quantization}
        extra = {"quantization_config": BitsAndBytesConfig(**settings), "device_map": {"": device}}
    try:
        return AutoModelForCausalLM.from_pretrained(
            resolve_base(base),
            revision=revision,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,  # never unpickle a file
            trust_remote_code=False,  # if missing, transformers asks at the terminal
            **extra,
        )
    except ImportError as error:
        raise BaseModelError('`model.quantization` needs bitsandbytes: pip install "fc-lightning[qlora]"') from error
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{base}: the model could not be loaded (`model.base`): {first_line(error)}") from error


def base_digest(model: PreTrainedModel) -> str:
    """A fingerprint of a base's weights, the same in every precision and quantization.

    It covers the vectors (norms, biases) and a sample of the embedding's rows, which no quantization touches.
    """
    embedding = model.get_input_embeddings().weight
    digest = hashlib.sha256(str(list(embedding.shape)).encode())
    vectors = [weight for _, weight in sorted(model.named_parameters()) if weight.ndim == 1]
    for weight in (embedding[:: max(1, len(embedding) // 256)], *vectors):
        digest.update(weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def load_config(base: str, revision: str | None) -> PretrainedConfig:
    """Load the configuration of a base.

    Args:
        base: See :func:`fc_lightning.utils.pretrained.resolve_base`.
        revision: Revision on the hub.

    Raises:
        BaseModelError: If there is none.
    """
    try:
        folder = resolve_base(base)
        return AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=False).get_text_config()
    except (OSError, ValueError) as error:
        raise BaseModelError(
            f"{base}: no model configuration could be loaded (`model.base`): {first_line(error)}"
        ) from error
