"""Loads a base model and its configuration, and computes the fingerprint by which checkpoints recognize it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from fc_lightning.utils.errors import first_line
from fc_lightning.utils.pretrained import BaseModelError, resolve_base

_SAMPLED_ROWS = 8  # of each matrix in a fingerprint
# Fields of a configuration that change neither logits nor the meaning of a token id.
_NOT_COMPUTED = (
    r"_.*|.*dtype|.*version|architectures|use_cache|.*_token_id|output_.*|return_dict|id2label|label2id|problem_type|"
    r"max_position_embeddings|initializer_.*|.*_dropout|chunk_size_feed_forward|quantization_config|name_or_path"
)


def load_base(
    base: str,
    revision: str | None,
    dtype: torch.dtype,
    attention: str,
    quantization: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Load a base model into main memory, or a quantized one onto a device.

    Raises:
        BaseModelError: If there is no such model, or it cannot be quantized.
    """
    extra: dict[str, Any] = {}
    if quantization:
        settings = {"bnb_4bit_compute_dtype": dtype, **quantization}
        extra = {"quantization_config": BitsAndBytesConfig(**settings), "device_map": {"": device}}
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            resolve_base(base),
            revision=revision,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,  # never unpickle a file
            trust_remote_code=False,  # if missing, transformers asks at the terminal
            output_loading_info=True,
            **extra,
        )
    except ImportError as error:
        if not quantization:
            raise BaseModelError(f"{base}: the model could not be loaded: {first_line(error)}") from error
        raise BaseModelError('`model.quantization` needs bitsandbytes: pip install "fc-lightning[qlora]"') from error
    except Exception as error:  # a damaged file raises anything
        raise BaseModelError(f"{base}: the model could not be loaded (`model.base`): {first_line(error)}") from error
    if missing := sorted(loaded["missing_keys"]):  # transformers initializes them randomly
        raise BaseModelError(f"{base}: {len(missing)} weights are missing, e.g. {missing[0]} (`model.base`)")
    if not hasattr(model.get_decoder(), "layers"):
        raise BaseModelError(f"{base}: a {type(model).__name__} has no decoder layers (`model.base`)")
    for name in modules_without_text(model):
        model.get_submodule(name).requires_grad_(False)
    return model


def modules_without_text(model: PreTrainedModel) -> list[str]:
    """The names of modules that no text passes through, such as a vision tower: they stay as they are."""
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    path = next(name for name, module in model.named_modules() if module is decoder)
    parent = path.rpartition(".")[0]
    siblings = model.get_submodule(parent).named_children()
    names = [name for name, module in siblings if module is not decoder and module is not head]
    return [f"{parent}.{name}" if parent else name for name in names]


def is_mapped(base: str, revision: str | None, dtype: torch.dtype) -> bool:
    """Whether a base's weights stay in its files until they are read, because nothing casts or merges them."""
    config = load_config(base, revision)
    conversions = get_checkpoint_conversion_mapping(config.model_type) or []
    return config.dtype == dtype and not any(isinstance(conversion, WeightConverter) for conversion in conversions)


def base_digest(base: str, revision: str | None) -> str:
    """A fingerprint of a base's weights as they are on disk, so that it is the same in every quantization.

    It covers the name, the shape and some rows of every tensor, in bfloat16, and whether the head shares the matrix of
    the embedding.
    """
    digests = {}
    for file in _weight_files(resolve_base(base), revision):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - the file is not a dictionary
                digests[name] = _sample_digest(weights.get_slice(name))
    tied = load_config(base, revision).tie_word_embeddings
    return hashlib.sha256(f"{sorted(digests.items())} {tied}".encode()).hexdigest()


def base_record(base: str, revision: str | None) -> dict[str, Any]:
    """What a checkpoint says about its base: the digest of the weights, and what the configuration does with them."""
    config = json.loads(load_config(base, revision).to_json_string(use_diff=False))
    computes = {name: value for name, value in config.items() if not re.fullmatch(_NOT_COMPUTED, name)}
    return {"name": base, "revision": revision, "weights": base_digest(base, revision), "config": computes}


def _sample_digest(weight: Any) -> str:
    """A digest of the shape and of some rows of a tensor on disk."""
    shape = weight.get_shape()
    if len(shape) > 1:
        rows = torch.cat([weight[row : row + 1] for row in range(0, shape[0], max(1, shape[0] // _SAMPLED_ROWS))])
    else:
        rows = weight[:]
    if rows.is_floating_point():
        rows = rows.to(torch.bfloat16)
    # Lightning makes tensors on the device by default while it configures the model.
    return hashlib.sha256(f"{shape}".encode() + rows.cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _weight_files(folder: str, revision: str | None) -> list[Path]:
    """The files with a base's weights; those of a base on the Hub are in the cache, because it has been loaded."""
    config = try_to_load_from_cache(folder, CONFIG_NAME, revision=revision) if not Path(folder).is_dir() else None
    snapshot = Path(config).parent if isinstance(config, str) else Path(folder)
    index = snapshot / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        return [snapshot / SAFE_WEIGHTS_NAME]
    return [snapshot / name for name in set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())]


def load_config(base: str, revision: str | None) -> PretrainedConfig:
    """Load the configuration of a base; :class:`BaseModelError` if there is none."""
    try:
        folder = resolve_base(base)
        return AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=False).get_text_config()
    except BaseModelError:
        raise
    except Exception as error:  # a damaged file raises anything
        raise BaseModelError(
            f"{base}: no model configuration could be loaded (`model.base`): {first_line(error)}"
        ) from error
