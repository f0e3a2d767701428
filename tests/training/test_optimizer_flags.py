"""Optimizers and schedules on the command line: the flags of LightningCLI, and keys of the model."""

import pytest
import torch

SMALL = (
    "--data.train=[{path: data/quickstart/train.jsonl, limit: 8}]",
    "--data.validation=null",
    "--data.packing=false",
    "--model.learning_rate=0.01",
)


def last(folder) -> dict:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def dtypes(state) -> set:
    """Of all tensors in the state of a parameter."""
    if isinstance(state, dict):
        return set().union(*map(dtypes, state.values()))
    return {state.dtype} if isinstance(state, torch.Tensor) else set()


def groups(checkpoint: dict) -> dict[str, dict]:
    """The group of each trained parameter."""
    order = iter(checkpoint["optimization"]["parameters"])
    saved = checkpoint["optimizer_states"][0]["param_groups"]
    return {next(order): group for group in saved for _ in group["params"]}


def test_adamw_fused_with_groups(run):
    """Weight decay spares vectors, and B has its own learning rate; the flags set what they say."""
    folder = run(
        "fit", *SMALL, "--optimizer=AdamW", "--optimizer.fused=true", "--optimizer.betas=[0.8, 0.9]",
        "--model.weight_decay=0.1", "--model.lora_plus_ratio=8", "--lr_scheduler=ConstantLR",
        "--lr_scheduler.factor=1.0",
        '--model.peft={class_path: peft.LoraConfig, init_args: {r: 2, target_modules: [q_proj], use_dora: true}}',
    )  # fmt: skip
    found = groups(last(folder))
    assert any("magnitude" in name for name in found)
    for name, group in found.items():
        assert group["fused"]
        assert list(group["betas"]) == [0.8, 0.9]
        assert group["weight_decay"] == (0.0 if "magnitude" in name else 0.1), name
        assert group["lr"] == pytest.approx(0.08 if "lora_B" in name else 0.01), name


@pytest.mark.parametrize(
    ("arguments", "state"),
    [
        (["--optimizer=torch.optim.Muon"], "momentum_buffer"),
        pytest.param(["--model.optimizer.class_path=torch.optim.NAdam"], "mu_product", marks=pytest.mark.slow),
        (["--optimizer=SGD", "--optimizer.momentum=0.9"], "momentum_buffer"),
        pytest.param(
            ["--model.optimizer={class_path: Adafactor, init_args: {d: 2.0}}"], "step", marks=pytest.mark.slow
        ),
    ],
    ids=["Muon", "NAdam", "SGD", "Adafactor"],
)
def test_another_optimizer_trains_and_resumes_exactly(run, arguments, state):
    schedule = ("--model.schedule=constant_with_warmup", "--model.warmup=0")
    whole = last(run("fit", *SMALL, *schedule, *arguments))
    assert all(state in values for values in whole["optimizer_states"][0]["state"].values())
    half = run("fit", *SMALL, *schedule, *arguments, "--trainer.max_steps=2")
    checkpoint = half / "checkpoints" / "last.ckpt"
    resumed = last(run("fit", *SMALL, *schedule, *arguments, f"--ckpt_path={checkpoint}"))
    assert resumed["global_step"] == whole["global_step"] == 4
    for name, weight in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], weight), name


def test_eight_bit_optimizer(run):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    flag = f"--optimizer={bitsandbytes.optim.AdamW8bit.__module__}.AdamW8bit"
    # Matrices of fewer values than this stay in 32 bits.
    flags = (flag, "--optimizer.min_8bit_size=16", "--model.schedule=constant_with_warmup", "--model.warmup=0")
    half = run("fit", *SMALL, *flags, "--trainer.max_steps=2")
    states = last(half)["optimizer_states"][0]["state"].values()
    assert all(torch.uint8 in dtypes(state) for state in states)
    resumed = run("fit", *SMALL, *flags, f"--ckpt_path={half / 'checkpoints' / 'last.ckpt'}")
    whole = run("fit", *SMALL, *flags)
    assert last(resumed)["global_step"] == last(whole)["global_step"] == 4
    for name, weight in last(whole)["state_dict"].items():
        assert torch.equal(last(resumed)["state_dict"][name], weight), name


def test_a_package_that_is_missing_is_one_line(run, capsys):
    with pytest.raises(SystemExit):
        run("fit", *SMALL, "--optimizer=no_such_package.optim.AdamW8bit")
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: `model.optimizer`: no_such_package.optim.AdamW8bit cannot be imported: No module named"
    )


@pytest.mark.parametrize(
    ("arguments", "check"),
    [
        (["--lr_scheduler=ExponentialLR", "--lr_scheduler.gamma=0.5", "--lr_scheduler.interval=step"], 0.01 * 0.5**4),
        (["--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=train/loss"], 0.01),
    ],
    ids=["ExponentialLR", "ReduceLROnPlateau"],
)
def test_schedules(run, arguments, check):
    (group,) = last(run("fit", *SMALL, *arguments))["optimizer_states"][0]["param_groups"]
    assert group["lr"] == pytest.approx(check)
