"""Checks that a checkpoint belongs to the model that it is loaded into, and raises BaseModelError if it does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from peft import PeftModel
from torch import Tensor

from fc_lightning.training.checkpoint_io import check_finite
from fc_lightning.utils.pretrained import BaseModelError

# Where the base is, and how the adapter is used.
_NOT_SAVED = {"base_model_name_or_path", "revision", "inference_mode", "task_type", "peft_version", "auto_mapping"}
# The adapted modules can be given in several ways; the names of the weights show which they are.
_NOT_COMPARED = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}


def check_weights(saved: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that a checkpoint has exactly the weights that this configuration trains, by name and shape."""
    missing, unknown = sorted(expected.keys() - saved.keys()), sorted(saved.keys() - expected.keys())
    if missing or unknown:
        raise BaseModelError(
            "the checkpoint does not match the configuration (`model.peft`, `model.special_tokens`, `model.base`): "
            f"{len(missing)} weights are missing from it, {len(unknown)} are unknown, e.g. {(missing + unknown)[0]}"
        )
    for name, weight in expected.items():
        if saved[name].shape != weight.shape:
            raise BaseModelError(
                f"the checkpoint does not match the configuration (`model.peft`, `model.base`): the shape of {name} is "
                f"{tuple(saved[name].shape)} in the checkpoint and {tuple(weight.shape)} in the model"
            )
    check_finite(saved, "the checkpoint")


def check_base(checkpoint: Mapping[str, Any], record: Mapping[str, Any], vocabulary: str) -> None:
    """Check that a checkpoint was trained on a base with this record and this digest of the vocabulary."""
    base = record["name"]
    if checkpoint.get("vocabulary", vocabulary) != vocabulary:
        raise BaseModelError(
            f"the checkpoint does not match `model.base` {base}: its token IDs belong to a different vocabulary"
        )
    saved = checkpoint.get("base", {})
    name = f"{saved.get('name')}, revision {saved['revision']}" if saved.get("revision") else saved.get("name")
    if saved.get("weights", record["weights"]) != record["weights"]:
        raise BaseModelError(
            f"the checkpoint was trained on a different base ({name}) than `model.base` {base}: the weights differ"
        )
    config, now = saved.get("config", {}), record.get("config", {})
    for key in sorted(config.keys() & now.keys()):  # another version of transformers has other fields
        if config[key] != now[key]:
            raise BaseModelError(
                f"the checkpoint was trained on a different base ({name}) than `model.base` {base}: `{key}` was "
                f"{config[key]} and is now {now[key]}"
            )


def adapter_settings(model: Any) -> dict[str, Any]:
    """The settings of an adapter that affect its weights, as JSON-serializable values; empty without an adapter."""
    if not isinstance(model, PeftModel):
        return {}
    settings = model.peft_config[model.active_adapter].to_dict()
    return {
        name: json.loads(json.dumps(sorted(value) if isinstance(value, set) else value, default=str))
        for name, value in settings.items()
        if name not in _NOT_SAVED
    }


def check_adapter(checkpoint: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Check that a checkpoint was trained with this adapter: the shapes of its weights do not show every setting."""
    saved = checkpoint.get("adapter", settings)
    for name in sorted((saved.keys() & settings.keys()) - _NOT_COMPARED):  # another version of PEFT has other fields
        if saved[name] != settings[name]:
            raise BaseModelError(
                f"the checkpoint does not match `model.peft`: `{name}` was {saved[name]} and is now {settings[name]}"
            )
