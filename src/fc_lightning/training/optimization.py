"""Optimizer, parameter groups and schedule, and how a resumed run applies settings that have changed."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from fc_lightning.training.checkpoint_io import CheckpointError
from fc_lightning.utils.errors import UserError, first_line

_KEY = "optimization"
_BUILT_IN = "AdamW"
_SCHEDULER_FIELDS = ("interval", "frequency", "monitor", "strict", "name")  # of Lightning's scheduler configuration


class SettingsError(UserError):
    """A training setting is out of range, or does not go with another. The message names it and says what to do."""


@dataclass(frozen=True)
class OptimizationSettings:
    """How weights are updated: the settings of :class:`fc_lightning.FunctionCallingModule` of the same names."""

    learning_rate: float
    weight_decay: float
    warmup: float
    schedule: str
    lora_plus_ratio: float | None = None
    optimizer: Any = None
    lr_scheduler: Any = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("learning_rate", 0.0, None),
            ("weight_decay", 0.0, None),
            ("warmup", 0.0, 1.0),
            ("lora_plus_ratio", 0.0, None),
        ):
            value = getattr(self, name)
            if value is not None and not (low <= value and (high is None or value <= high)):
                limits = f"between {low:g} and {high:g}" if high is not None else f"at least {low:g}"
                raise SettingsError(f"`model.{name}` must be {limits}, not {value}")


@dataclass
class _Named:
    """A class with arguments, from a string or ``{class_path, init_args, …}``."""

    path: str
    arguments: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, value: Any, key: str, fields: Sequence[str] = ()) -> _Named:
        """Read a setting; ``key`` names it in errors. Arguments may also be given next to ``class_path``."""
        if isinstance(value, str):
            return cls(value)
        value = {name: part for name, part in dict(value).items() if part is not None}
        if not isinstance(path := value.pop("class_path", None), str):
            raise SettingsError(f"`model.{key}` needs a `class_path`, such as torch.optim.AdamW")
        more = {name: value.pop(name) for name in fields if name in value}
        return cls(path, {**dict(value.pop("init_args", {})), **value}, more)

    def load(self, package: str, kind: type, key: str) -> Any:
        """The class. A name without dots is one of ``package``."""
        module, _, name = (self.path if "." in self.path else f"{package}.{self.path}").rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise SettingsError(f"`model.{key}`: {self.path} cannot be imported: {first_line(error)}") from error
        if not (isinstance(found, type) and issubclass(found, kind)):
            raise SettingsError(f"`model.{key}`: {self.path} is not a subclass of {kind.__name__}")
        return found


def make_groups(named: Iterable[tuple[str, Tensor]], settings: OptimizationSettings) -> list[dict[str, Any]]:
    """Parameter groups: vectors have no weight decay, and LoRA's B matrices may have a learning rate of their own.

    Parameters that are treated alike share a group, in the order of the model.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in named:
        is_matrix = parameter.ndim > 1 and "ia3_l" not in name  # IA3's vectors have a second dimension of size 1
        decay = settings.weight_decay if is_matrix else 0.0
        ratio = settings.lora_plus_ratio if settings.lora_plus_ratio and "lora_B" in name else 1.0
        groups.setdefault((settings.learning_rate * ratio, decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def make_optimizer(named: Sequence[tuple[str, Tensor]], settings: OptimizationSettings) -> Optimizer:
    """The optimizer over the trained parameters; SettingsError if it does not take them or its arguments."""
    chosen = _Named.parse(settings.optimizer or _BUILT_IN, "optimizer")
    optimizer_class = chosen.load("torch.optim", Optimizer, "optimizer")
    for name in ("lr", "weight_decay"):
        if name in chosen.arguments:
            setting = "learning_rate" if name == "lr" else name
            raise SettingsError(f"`model.optimizer`: set `model.{setting}` instead of `{name}`")
    if issubclass(optimizer_class, torch.optim.LBFGS):
        raise SettingsError("`model.optimizer`: LBFGS computes the loss several times per step; use another optimizer")
    groups = make_groups(named, settings)
    rate = {"lr": settings.learning_rate}
    try:
        _try_step(optimizer_class, named[0][1] if named else torch.zeros(0), {**rate, **chosen.arguments})
        return optimizer_class(groups, **rate, **chosen.arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise SettingsError(f"`model.optimizer`: {optimizer_class.__name__}: {first_line(error)}") from error


def _try_step(optimizer_class: Any, like: Tensor, arguments: Mapping[str, Any]) -> None:
    """Take a step with a small weight: what an optimizer cannot do shows only then, as with dense gradients."""
    weight = torch.nn.Parameter(torch.zeros(2, 2, device=like.device, dtype=like.dtype))
    weight.grad = torch.zeros_like(weight)
    optimizer_class([weight], **arguments).step()


class WarmupSchedule(LambdaLR):
    """A schedule of transformers whose base learning rates are those of the configuration, also in a resumed run."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position, and set the learning rates that the configuration gives there."""
        done = state_dict["last_epoch"]
        rates = [base * factor(done) for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)]
        super().load_state_dict({**state_dict, "base_lrs": self.base_lrs, "_last_lr": rates})
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def make_scheduler(optimizer: Optimizer, settings: OptimizationSettings, num_steps: float) -> dict[str, Any]:
    """Lightning's configuration of the scheduler of a run with this number of optimizer steps.

    Raises:
        SettingsError: If the scheduler cannot be made, or needs the number of steps, which is not known.
    """
    if settings.lr_scheduler is None:
        if not 0 <= num_steps < math.inf:
            raise SettingsError(
                "`model.schedule` needs the number of steps: set `trainer.max_steps` or `trainer.max_epochs` (the data "
                "must have a length for `max_epochs`), or choose a `model.lr_scheduler`"
            )
        num_steps = int(num_steps)
        warmup_steps = round(settings.warmup * num_steps)
        plain = get_scheduler(settings.schedule, optimizer, num_warmup_steps=warmup_steps, num_training_steps=num_steps)
        return {"scheduler": WarmupSchedule(optimizer, plain.lr_lambdas), "interval": "step", "name": "lr"}
    chosen = _Named.parse(settings.lr_scheduler, "lr_scheduler", _SCHEDULER_FIELDS)
    scheduler_class = chosen.load("torch.optim.lr_scheduler", torch.optim.lr_scheduler.LRScheduler, "lr_scheduler")
    if issubclass(scheduler_class, torch.optim.lr_scheduler.ReduceLROnPlateau) and "monitor" not in chosen.more:
        raise SettingsError("`model.lr_scheduler`: ReduceLROnPlateau needs a `monitor`, such as val/loss")
    try:
        return {"scheduler": scheduler_class(optimizer, **chosen.arguments), "name": "lr", **chosen.more}
    except (TypeError, ValueError) as error:
        raise SettingsError(f"`model.lr_scheduler`: {scheduler_class.__name__}: {first_line(error)}") from error


def configure(
    trained: Mapping[str, Tensor], settings: OptimizationSettings, num_steps: float, saved_names: Sequence[str] = ()
) -> dict[str, Any]:
    """Make optimizer and schedule, as ``configure_optimizers`` returns them.

    Args:
        trained: The trained weights by name.
        settings: The settings.
        num_steps: Number of optimizer steps of the run; infinite or negative if it is not known.
        saved_names: In a resumed run, what :func:`check_settings` has returned.
    """
    optimizer = make_optimizer(list(trained.items()), settings)
    if settings.lr_scheduler is None:
        names = ordered_names(optimizer, trained)
        keep_settings(optimizer, names, saved_names or names)
    return {"optimizer": optimizer, "lr_scheduler": make_scheduler(optimizer, settings, num_steps)}


def save_settings(
    checkpoint: dict[str, Any],
    settings: OptimizationSettings,
    optimizers: Sequence[Optimizer],
    trained: Mapping[str, Tensor],
) -> None:
    """Record the settings in a checkpoint, and the order in which the optimizer's state has the parameters."""
    names = [name for optimizer in optimizers for name in ordered_names(optimizer, trained)]
    checkpoint[_KEY] = {"settings": asdict(settings), "parameters": names}


def check_settings(checkpoint: Mapping[str, Any], settings: OptimizationSettings) -> list[str]:
    """Check that a run can resume with these settings.

    Learning rate, weight decay, warm-up, schedule and LoRA+ ratio may change, and are applied. Optimizer and
    ``lr_scheduler`` may not, and with an ``lr_scheduler`` nothing may, because its state depends on all of them.

    Returns:
        The names of the parameters in the order of the optimizer's state, empty in a checkpoint of an earlier version:
        there it is the order of the model.

    Raises:
        CheckpointError: If something has changed that cannot.
    """
    saved = checkpoint.get(_KEY, {}).get("settings")
    if saved is None:  # a checkpoint of an earlier version
        return []
    current = asdict(settings)
    changed = [name for name, value in current.items() if saved.get(name) != value]
    fixed = current.keys() if settings.lr_scheduler is not None else {"optimizer", "lr_scheduler"}
    if refused := [name for name in changed if name in fixed]:
        name = refused[0]
        raise CheckpointError(
            f"the run cannot resume with a different `model.{name}` (was {saved.get(name)}, now {current[name]}): the "
            "saved state depends on it; keep it, or start a new run"
        )
    for name in changed:
        rank_zero_info(f"resuming with a different `model.{name}`: was {saved.get(name)}, now {current[name]}")
    return checkpoint[_KEY]["parameters"]


def check_has_state(checkpoint: Mapping[str, Any]) -> None:
    """Check that a checkpoint has the optimizer state, which a resumed run needs; CheckpointError if not."""
    if not {"optimizer_states", "lr_schedulers"} <= checkpoint.keys():
        raise CheckpointError(
            "the checkpoint has weights only (`save_weights_only`) and no optimizer state, so training cannot resume "
            "from it; export it, and use the folder as `model.base`"
        )


def ordered_names(optimizer: Optimizer, named: Mapping[str, Tensor]) -> list[str]:
    """The names of an optimizer's parameters, in the order of its state."""
    names = {id(parameter): name for name, parameter in named.items()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def keep_settings(optimizer: Optimizer, names: Sequence[str], saved_names: Sequence[str]) -> None:
    """Make an optimizer keep the hyperparameters of its groups when it loads a state.

    If the groups have changed, the state of each parameter is found by its name: names are those of the optimizer and
    of the state that it will load, each in the order of the state.
    """

    def adapt(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        groups, saved = optimizer.state_dict()["param_groups"], state_dict["param_groups"]
        if [len(group["params"]) for group in groups] == [len(group["params"]) for group in saved] and (
            list(saved_names) == list(names)
        ):
            kept = [{**old, **new, "params": old["params"]} for old, new in zip(saved, groups, strict=True)]
            return {**state_dict, "param_groups": kept}
        places = {name: place for place, name in enumerate(saved_names)}
        found = [(place, places[name]) for place, name in enumerate(names) if places[name] in state_dict["state"]]
        state = {place: state_dict["state"][saved_place] for place, saved_place in found}
        return {**state_dict, "state": state, "param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(adapt)
