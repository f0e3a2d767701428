"""Checks whether a PEFT configuration is supported, and rejects it with a one-line error before training if not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from peft import PeftConfig, PeftType, PromptLearningConfig
from torch import nn

from fc_lightning.utils.pretrained import BaseModelError

_VIRTUAL_TOKENS = "it prepends virtual tokens to each row, which packed conversations would share"
# Types that cannot be trained, resumed and exported as a merged model, with the reason.
_UNSUPPORTED = {
    PeftType.ADALORA: "it changes its ranks during training, and PEFT does not save that state",
    PeftType.ADAMSS: "it changes its budget during training, and PEFT does not save that state",
    PeftType.ADAPTION_PROMPT: "it cannot be merged into the base",
    PeftType.BEFT: "it trains biases, and cannot be merged into layers that have none",
    PeftType.LILY: "it cannot be merged into the base",
    PeftType.POLY: "it requires a task ID per row",
    PeftType.SHADOW: "it cannot be merged into the base",
    PeftType.TRAINABLE_TOKENS: "use `model.special_tokens` instead: those embeddings are trained along with any LoRA",
    PeftType.XLORA: "it mixes adapters that are already trained",
}
# Settings of other types that are not supported, with the reason.
UNSUPPORTED_FIELDS = {
    "arrow_config": "mixes adapters that are already trained; remove it",
    "alora_invocation_tokens": "cannot be merged into the base; remove them",
    "layer_replication": "changes the base; remove it",
    "lora_bias": "cannot be merged into layers without bias",
}
# Initializations of LoRA that neither need data nor change the base's weights, which checkpoints do not contain.
_PLAIN_INITIALIZATIONS = (True, False, "gaussian", "orthogonal", "mica")


def unsupported_reason(config_class: type[PeftConfig], kind: PeftType) -> str:
    """Why a type of adapter is not supported; empty if it is."""
    return _VIRTUAL_TOKENS if issubclass(config_class, PromptLearningConfig) else _UNSUPPORTED.get(kind, "")


def trains_token_rows(config_class: type[PeftConfig]) -> bool:
    """Whether a type of adapter can also train new-token embeddings."""
    return "trainable_token_indices" in config_class.__dataclass_fields__


def targets_module(peft: PeftConfig, name: str) -> bool:
    """Whether a configuration puts an adapter on the module of this full name."""
    targets, excluded = (getattr(peft, field, None) for field in ("target_modules", "exclude_modules"))
    if targets == "all-linear":  # never the head
        return False
    parameters = getattr(peft, "target_parameters", None) or []
    return (_matches(targets, name) and not _matches(excluded, name)) or f"{name}.weight" in parameters


def trains_whole_module(peft: PeftConfig, name: str) -> bool:
    """Whether a configuration trains a copy of the module of this full name: ``modules_to_save``."""
    return any(name.endswith(suffix) for suffix in getattr(peft, "modules_to_save", None) or [])


def check_supported(peft: PeftConfig, model: Any) -> None:
    """Reject a configuration that cannot be trained on a base, saved, resumed, merged and loaded again."""
    kind = type(peft).__name__
    if reason := unsupported_reason(type(peft), PeftType(peft.peft_type)):
        raise BaseModelError(f"`model.peft`: {kind} is not supported: {reason}")
    for field, reason in UNSUPPORTED_FIELDS.items():
        if getattr(peft, field, None):
            raise BaseModelError(f"`model.peft`: {kind} with `{field}` {reason}")
    start = getattr(peft, "init_lora_weights", True)
    if start not in _PLAIN_INITIALIZATIONS:
        raise BaseModelError(
            f"`model.peft`: `init_lora_weights: {start}` needs data or changes the base's weights, which a checkpoint "
            "does not contain; remove it"
        )
    for field in ("target_modules", "modules_to_save"):
        names = getattr(peft, field, None)
        if isinstance(names, str) and not _is_regular(names):
            raise BaseModelError(f"`model.peft`: `{field}`: {names} is not a valid regular expression")
        _check_names(model, field, [names] if isinstance(names, str) else names or [], isinstance(names, str))
    if getattr(peft, "use_dora", False) and _adapts_zero_row(peft, model):
        raise BaseModelError(
            "`model.peft`: DoRA divides by the norm of each row, and lm_head has rows of zeros; remove lm_head from "
            "`target_modules`"
        )


def _adapts_zero_row(peft: PeftConfig, model: Any) -> bool:
    head = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head)
    return targets_module(peft, name) and bool((head.weight == 0).all(1).any())


def _check_names(model: nn.Module, field: str, names: Sequence[str], regular: bool) -> None:
    """Reject a name that matches no module of the model; PEFT ignores it if another name matches one."""
    modules = [name for name, _ in model.named_modules()]
    for name in names:
        if name != "all-linear" and not any(_matches(name if regular else [name], module) for module in modules):
            suffixes = [
                module.rpartition(".")[2]
                for module, layer in model.named_modules()
                if isinstance(layer, nn.Linear | nn.Embedding)
            ]
            raise BaseModelError(
                f"`model.peft`: `{field}` names {name}, but the model has no such module; it has "
                f"{', '.join(dict.fromkeys(suffixes))}"
            )


def _is_regular(expression: str) -> bool:
    try:
        re.compile(expression)
    except re.error:
        return False
    return True


def _matches(names: str | Sequence[str] | None, module: str) -> bool:
    """As PEFT matches: one regular expression for full names, or a list of full names and their last parts."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names or ())
