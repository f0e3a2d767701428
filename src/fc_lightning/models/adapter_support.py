"""Which PEFT configurations can be trained: what does not work is refused here, before training, in one line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from peft import PeftConfig, PeftType
from torch import nn

from fc_lightning.utils.pretrained import BaseModelError

# Types that cannot be trained, resumed and exported as a merged model, with the reason.
_UNSUPPORTED = {
    PeftType.ADALORA: "it changes its ranks during training, and PEFT does not save that state",
    PeftType.ADAMSS: "it changes its budget during training, and PEFT does not save that state",
    PeftType.ADAPTION_PROMPT: "it cannot be merged into the base",
    PeftType.BEFT: "it trains biases, and cannot be merged into layers that have none",
    PeftType.CPT: "it puts tokens of its own before each row, so packs cannot be kept apart",
    PeftType.LILY: "it cannot be merged into the base",
    PeftType.POLY: "it needs a task number with each row",
    PeftType.SHADOW: "it cannot be merged into the base",
    PeftType.TRAINABLE_TOKENS: "set `model.special_tokens` instead, whose rows are trained with any LoRA",
    PeftType.XLORA: "it mixes adapters that are already trained",
}
# Initialisations of LoRA that need data or change the base's weights, which a checkpoint does not hold.
_PLAIN_INITIALISATIONS = (True, False, "gaussian", "orthogonal", "mica")


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
    """Refuse what cannot be trained, saved, resumed, merged and loaded again.

    Args:
        peft: The configuration of an adapter.
        model: The base.

    Raises:
        BaseModelError: If it cannot. The message says what to do.
    """
    kind = type(peft).__name__
    if peft.is_prompt_learning:
        raise BaseModelError(
            f"`model.peft`: {kind} puts tokens of its own before each row, so packs cannot be kept apart"
        )
    if peft.peft_type in _UNSUPPORTED:
        raise BaseModelError(f"`model.peft`: {kind} is not supported: {_UNSUPPORTED[PeftType(peft.peft_type)]}")
    if getattr(peft, "alora_invocation_tokens", None):
        raise BaseModelError(
            f"`model.peft`: {kind} with `alora_invocation_tokens` cannot be merged into the base; remove them"
        )
    if getattr(peft, "layer_replication", None):
        raise BaseModelError(f"`model.peft`: {kind} with `layer_replication` changes the base; leave it out")
    if getattr(peft, "lora_bias", False):
        raise BaseModelError(f"`model.peft`: {kind} with `lora_bias` cannot be merged into layers without bias")
    start = getattr(peft, "init_lora_weights", True)
    if start not in _PLAIN_INITIALISATIONS:
        raise BaseModelError(
            f"`model.peft`: `init_lora_weights: {start}` needs data or changes the base's weights, which a checkpoint "
            "does not hold; leave it out"
        )
    for field in ("target_modules", "modules_to_save"):
        names = getattr(peft, field, None)
        if isinstance(names, str) and not _is_regular(names):
            raise BaseModelError(f"`model.peft`: `{field}`: {names} is not a valid regular expression")
        _check_names(model, field, [names] if isinstance(names, str) else names or [], isinstance(names, str))
    if getattr(peft, "use_dora", False) and _adapts_zero_row(peft, model):
        raise BaseModelError(
            "`model.peft`: DoRA divides by the norm of each row, and lm_head has rows of zeros; leave lm_head out of "
            "`target_modules`"
        )


def _adapts_zero_row(peft: PeftConfig, model: Any) -> bool:
    head = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head)
    return targets_module(peft, name) and bool((head.weight == 0).all(1).any())


def _check_names(model: nn.Module, field: str, names: Sequence[str], regular: bool) -> None:
    """Refuse a name that matches no module of the model; PEFT overlooks it if another name matches one.

    Args:
        model: The base.
        field: Where the names were configured.
        names: Names, or one regular expression.
        regular: Whether it is a regular expression.
    """
    modules = [name for name, _ in model.named_modules()]
    for name in names:
        if name != "all-linear" and not any(_matches(name if regular else [name], module) for module in modules):
            suffixes = [module.rpartition(".")[2] for module, layer in model.named_modules() if _has_matrix(layer)]
            raise BaseModelError(
                f"`model.peft`: `{field}` names {name}, and the model has no such module; it has "
                f"{', '.join(dict.fromkeys(suffixes))}"
            )


def _is_regular(expression: str) -> bool:
    try:
        re.compile(expression)
    except re.error:
        return False
    return True


def _has_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding)


def _matches(names: str | Sequence[str] | None, module: str) -> bool:
    """As PEFT matches: one regular expression for full names, or a list of full names and their last parts."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names or ())
