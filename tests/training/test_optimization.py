"""Optimizers, parameter groups and schedules; and which settings a resumed run may change."""

import copy
import math

import pytest
import torch
from peft import IA3Config, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from fc_lightning.training.checkpoint_io import CheckpointError
from fc_lightning.training.optimization import (
    OptimizationSettings,
    SettingsError,
    check_has_state,
    check_settings,
    configure,
    make_optimizer,
    make_scheduler,
    save_settings,
)

PLAIN = {"learning_rate": 0.1, "weight_decay": 0.0, "warmup": 0.2, "schedule": "linear"}
STEPS = 10


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"lora_A": nn.Linear(4, 3), "norm": nn.LayerNorm(3), "lora_B": nn.Linear(3, 2, bias=False)})


def trained(module: nn.Module) -> dict:
    return dict(module.named_parameters())


def settings(**changes) -> OptimizationSettings:
    return OptimizationSettings(**{**PLAIN, **changes})


def forward(module: nn.Module, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(5, 4, generator=generator)
    return module["lora_B"](module["norm"](module["lora_A"](x))).square().mean()


class Run:
    """Some steps of training, as Lightning takes them."""

    def __init__(self, chosen: OptimizationSettings):
        self.module, self.chosen = model(), chosen

    def prepare(self, saved: dict | None = None) -> None:
        names = check_settings(saved or {}, self.chosen) or list(trained(self.module))
        configured = configure(trained(self.module), self.chosen, STEPS, names)
        self.optimizer, self.scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
        if saved:
            self.module.load_state_dict(saved["weights"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.scheduler.load_state_dict(saved["scheduler"])

    def steps(self, start: int, stop: int) -> list[list[float]]:
        rates = []
        for step in range(start, stop):
            self.optimizer.zero_grad()
            forward(self.module, step).backward()
            rates.append([group["lr"] for group in self.optimizer.param_groups])
            self.optimizer.step()
            self.scheduler.step()
        return rates

    def save(self) -> dict:
        checkpoint = {"weights": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        checkpoint["scheduler"] = self.scheduler.state_dict()
        save_settings(checkpoint, self.chosen, [self.optimizer], trained(self.module))
        return copy.deepcopy(checkpoint)


def resumed(before: OptimizationSettings, after: OptimizationSettings, at: int = 4):
    """The first run's checkpoint, and the run that resumes from it."""
    first = Run(before)
    first.prepare()
    first.steps(0, at)
    saved = first.save()
    second = Run(after)
    second.prepare(saved)
    return saved, second


@pytest.mark.parametrize(
    "chosen",
    [
        settings(),
        settings(weight_decay=0.1, lora_plus_ratio=4.0),
        settings(optimizer="SGD"),
        settings(optimizer={"class_path": "torch.optim.Adafactor"}),
        settings(lr_scheduler={"class_path": "OneCycleLR", "max_lr": 0.5, "total_steps": STEPS, "interval": "step"}),
    ],
    ids=str,
)
def test_resuming_without_a_change_is_exact(chosen):
    whole = Run(chosen)
    whole.prepare()
    rates = whole.steps(0, STEPS)
    _, second = resumed(chosen, chosen)
    assert second.steps(4, STEPS) == rates[4:]
    for one, other in zip(whole.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.02},
        {"schedule": "cosine", "warmup": 0.5},
        {"weight_decay": 0.3},
        {"lora_plus_ratio": 8.0},
        {"weight_decay": 0.3, "lora_plus_ratio": 8.0, "learning_rate": 0.02},
    ],
    ids=str,
)
def test_a_change_applies_from_the_next_step_on(change):
    """Learning rates are those that a run with the new settings has at that step, and the moments are kept."""
    after = settings(**change)
    saved, second = resumed(settings(), after)
    fresh = Run(after)
    fresh.prepare()
    assert second.steps(4, STEPS) == fresh.steps(0, STEPS)[4:]
    saved, second = resumed(settings(), after)
    assert [group["weight_decay"] for group in second.optimizer.param_groups] == [
        group["weight_decay"] for group in fresh.optimizer.param_groups
    ]
    places = {name: place for place, name in enumerate(saved["optimization"]["parameters"])}
    for name, parameter in trained(second.module).items():
        old = saved["optimizer"]["state"][places[name]]
        assert torch.equal(second.optimizer.state[parameter]["exp_avg"], old["exp_avg"])


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (settings(), settings(optimizer="SGD"), "a different `model.optimizer`"),
        (settings(), settings(lr_scheduler="ExponentialLR"), "a different `model.lr_scheduler`"),
        (
            settings(lr_scheduler={"class_path": "ConstantLR"}),
            settings(lr_scheduler={"class_path": "ConstantLR"}, learning_rate=0.2),
            "a different `model.learning_rate` (was 0.1, now 0.2)",
        ),
    ],
)
def test_what_may_not_change(before, after, said):
    checkpoint = {}
    save_settings(checkpoint, before, [], {})
    with pytest.raises(CheckpointError) as caught:
        check_settings(checkpoint, after)
    assert said in str(caught.value)


def test_groups():
    """No weight decay on vectors, and a learning rate of its own for B; one group where nothing differs."""
    names = trained(model())
    assert len(make_optimizer(list(names.items()), settings()).param_groups) == 1
    optimizer = make_optimizer(list(names.items()), settings(weight_decay=0.5, lora_plus_ratio=16.0))
    found = {
        name: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for name, parameter in names.items()
        if any(parameter is one for one in group["params"])
    }
    vector, matrix = (0.1, 0.0), (0.1, 0.5)
    assert found == {
        "lora_A.weight": matrix,
        "lora_A.bias": vector,
        "norm.weight": vector,
        "norm.bias": vector,
        "lora_B.weight": (pytest.approx(1.6), 0.5),
    }


def test_the_vectors_of_ia3_have_no_weight_decay():
    base = AutoModelForCausalLM.from_pretrained("tests/models/tiny_gemma2")
    adapted = get_peft_model(base, IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]))
    named = [(name, weight) for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert {weight.ndim for _, weight in named} == {2}
    (group,) = make_optimizer(named, settings(weight_decay=0.5)).param_groups
    assert group["weight_decay"] == 0


@pytest.mark.parametrize("num_steps", [math.inf, -1])
def test_a_schedule_needs_the_number_of_steps(num_steps):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(SettingsError, match=r"set `trainer\.max_steps` or `trainer\.max_epochs`"):
        make_scheduler(optimizer, settings(), num_steps)
    make_scheduler(optimizer, settings(lr_scheduler={"class_path": "StepLR", "init_args": {"step_size": 1}}), num_steps)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"learning_rate": -1.0}, "`model.learning_rate` must be at least 0, not -1.0"),
        ({"warmup": 2}, "`model.warmup` must be between 0 and 1, not 2"),
        ({"optimizer": "NoSuch"}, "`model.optimizer`: NoSuch cannot be imported: "),
        ({"optimizer": "nowhere.Adam"}, "`model.optimizer`: nowhere.Adam cannot be imported: "),
        ({"optimizer": "torch.nn.Linear"}, "`model.optimizer`: torch.nn.Linear is not a subclass of Optimizer"),
        ({"optimizer": {"lr": 0.1}}, "`model.optimizer` needs a `class_path`"),
        ({"optimizer": {"class_path": "AdamW", "init_args": {"lr": 0.1}}}, "set `model.learning_rate` instead of `lr`"),
        ({"optimizer": {"class_path": "AdamW", "nonsense": 1}}, "`model.optimizer`: AdamW: "),
        ({"optimizer": "LBFGS"}, "`model.optimizer`: LBFGS computes the loss several times"),
        ({"optimizer": "Muon"}, "`model.optimizer`: Muon: "),
        ({"lr_scheduler": "ReduceLROnPlateau"}, "ReduceLROnPlateau needs a `monitor`"),
        ({"lr_scheduler": {"class_path": "StepLR"}}, "`model.lr_scheduler`: StepLR: "),
    ],
)
def test_wrong_settings_are_one_line(chosen, said):
    parameters = trained(model())

    def use() -> None:
        configure(parameters, settings(**chosen), STEPS)

    with pytest.raises(SettingsError) as caught:
        use()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"optimizer": "SparseAdam"}, "SparseAdam does not support dense gradients"),
        ({"optimizer": {"class_path": "AdamW", "capturable": True}}, "capturable"),
        ({"learning_rate": 1e39}, "overflow"),
    ],
)
def test_an_optimizer_that_fails_only_at_a_step_is_refused_before_training(changes, reason):
    with pytest.raises(SettingsError, match=reason):
        make_optimizer(list(trained(model()).items()), settings(**changes))


@pytest.mark.parametrize("missing", ["optimizer_states", "lr_schedulers"])
def test_weights_alone_cannot_be_resumed(missing):
    checkpoint = {"optimizer_states": [], "lr_schedulers": []}
    check_has_state(checkpoint)
    del checkpoint[missing]
    with pytest.raises(CheckpointError, match="weights only"):
        check_has_state(checkpoint)
