"""Every type of adapter in PEFT: trained, resumed, merged, exported and loaded without this package, or rejected."""

import json
from pathlib import Path

import peft
import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from tests.helpers.adapters import REFUSED, REFUSED_WITH_TAGS, WITH_TAGS, WORKING, with_defaults
from tests.helpers.checkpoints import Killed
from transformers import AutoModelForCausalLM, AutoTokenizer

from fc_lightning.callbacks.adapter import adapter_folder
from fc_lightning.cli.lightning_cli import main
from fc_lightning.commands.checkpoints import load_checkpoint
from fc_lightning.models.lora import untie_head
from fc_lightning.training.module import FunctionCallingModule

TINY = Path("tests/models/tiny_gemma2")
FAST = {"LoRA", "LoRA with the head", "VeRA"}


def slow_beyond_a_handful(names):
    return [pytest.param(name, marks=[] if name in FAST else pytest.mark.nightly) for name in names]


@pytest.fixture(scope="session", params=["tied", pytest.param("untied", marks=pytest.mark.slow)])
def tiny(request, tmp_path_factory) -> Path:
    """The tiny Gemma 2, and the same with a head of its own."""
    if request.param == "tied":
        return TINY
    folder = tmp_path_factory.mktemp("untied")
    model = AutoModelForCausalLM.from_pretrained(TINY)
    untie_head(model)
    model.lm_head.weight.data += 0.1 * torch.randn(
        model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return folder


def configure(folder: Path, base: Path, kind: str, arguments, tags: bool) -> list[str]:
    """Arguments of a subcommand that trains with an adapter."""
    overlay = folder / "overlay.yaml"
    adapter = {"class_path": f"peft.{kind}", "init_args": with_defaults(kind, arguments)}
    model = {"base": str(base), "peft": adapter, "learning_rate": 0.01, "schedule": "constant_with_warmup"}
    every_step = {"filename": "{step}", "every_n_train_steps": 1, "save_top_k": -1}
    callbacks = [
        {"class_path": "fc_lightning.callbacks.SaveAdapter"},
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": every_step},
    ]
    recipe = {"model": model | ({} if tags else {"special_tokens": []}), "trainer": {"callbacks": callbacks}}
    overlay.write_text(yaml.safe_dump(recipe))
    runs = f"--trainer.logger.init_args.save_dir={folder / 'runs'}"
    return [
        "--config=configs/debug/tiny.yaml",
        f"--config={overlay}",
        runs,
        "--data.validation=null",
        "--data.packing=false",
    ]


def logits(model, ids) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ids).logits


def check_the_whole_way(folder: Path, base: Path, kind: str, arguments, tags: bool) -> None:
    """Train, resume, export both ways, and compare logits: PEFT and transformers alone give the trained model's."""
    given = configure(folder, base, kind, arguments, tags)
    killer = json.dumps({"class_path": "tests.helpers.checkpoints.RaiseAfter", "init_args": {"steps": 3}})
    with pytest.raises(Killed):
        main(["fit", *given, f"--trainer.callbacks+={killer}", "--trainer.max_steps=4"])
    (third,) = (folder / "runs").glob("**/step=3.ckpt")
    first = torch.load(third, weights_only=True)
    main(["fit", *given, "--trainer.max_steps=4", f"--ckpt_path={third}"])
    (last,) = (folder / "runs").glob("**/step=4.ckpt")
    state = torch.load(last, weights_only=True)
    assert (first["global_step"], state["global_step"]) == (3, 4)
    assert any((first["state_dict"][name] != weight).any() for name, weight in state["state_dict"].items())

    adapter = getattr(peft, kind)(**with_defaults(kind, arguments))
    module = FunctionCallingModule(str(base), peft=adapter, special_tokens=None if tags else [])
    load_checkpoint(module, last)
    tokenizer = module.tokenizer
    ids = tokenizer("<start_of_turn>user\n<tools> hi <tool_call>{}</tool_call>", return_tensors="pt").input_ids
    trained = logits(module.model, ids)
    assert trained.isfinite().all()
    untrained = logits(AutoModelForCausalLM.from_pretrained(base), ids.clamp(max=len(tokenizer) - 9))
    assert tags or (trained - untrained).abs().max() > 1e-4

    main(["export", *given, f"--output={folder / 'merged'}", f"--ckpt_path={last}"])
    main(["export", *given, f"--output={folder / 'adapter'}", f"--ckpt_path={last}", "--merge=false"])
    plain = AutoModelForCausalLM.from_pretrained(base)
    plain.resize_token_embeddings(max(len(tokenizer), plain.get_input_embeddings().num_embeddings))
    restored = {
        "merged": AutoModelForCausalLM.from_pretrained(folder / "merged"),
        "exported adapter": AutoPeftModelForCausalLM.from_pretrained(folder / "adapter"),
        "adapter of the checkpoint": PeftModel.from_pretrained(plain, adapter_folder(last)),
    }
    for name, model in restored.items():
        torch.testing.assert_close(
            logits(model, ids), trained, rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("name", slow_beyond_a_handful(WORKING))
def test_an_adapter_survives_training_resuming_merging_and_loading(name, tmp_path):
    check_the_whole_way(tmp_path, TINY, *WORKING[name], tags=False)


@pytest.mark.parametrize("name", slow_beyond_a_handful(WITH_TAGS))
def test_an_adapter_with_new_tokens_survives(name, tiny, tmp_path):
    check_the_whole_way(tmp_path, tiny, *WORKING[name], tags=True)


def refusal(capsys, folder: Path, kind: str, arguments, tags: bool) -> str:
    """The one line that a run ends with."""
    given = configure(folder, TINY, kind, arguments, tags)
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *given, "--trainer.max_steps=1"])
    assert exit_.value.code == 1
    assert not list(folder.glob("**/*.ckpt"))
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.nightly
def test_an_adapter_is_refused_in_one_line(name, tmp_path, capsys):
    kind, arguments, line = REFUSED[name]
    assert line in refusal(capsys, tmp_path, kind, arguments, tags=False)


@pytest.mark.parametrize("name", REFUSED_WITH_TAGS)
@pytest.mark.nightly
def test_an_adapter_is_refused_with_new_tokens(name, tmp_path, capsys):
    kind, arguments, line = REFUSED_WITH_TAGS[name]
    assert line in refusal(capsys, tmp_path, kind, arguments, tags=True)


def test_every_type_of_peft_is_in_the_table():
    """A new type in PEFT is noticed here."""
    kinds = {kind for kind, *_ in [*WORKING.values(), *REFUSED.values()]}
    assert {config.__name__ for config in PEFT_TYPE_TO_CONFIG_MAPPING.values()} == kinds
