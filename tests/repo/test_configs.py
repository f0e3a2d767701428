"""Every shipped YAML: read by an editor's schema, and a typo in it is found."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from fc_lightning.cli.lightning_cli import FunctionCallingCLI

FILES = sorted(str(path) for folder in ("configs", "examples") for path in Path(folder).rglob("*.yaml"))
SCHEMA = Path("configs/schema.json")


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
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


@pytest.fixture(scope="module")
def parser():
    """The command line's parser, made once: making it is what takes time."""
    kept = []

    class ParserAlone(FunctionCallingCLI):
        def parse_arguments(self, parser, args):
            kept.append(parser)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ParserAlone([])
    return kept[0]


@pytest.mark.parametrize("path", [path for path in FILES if path.startswith("configs/hardware")])
def test_a_recipe_for_hardware_as_its_comment_says(path, parser):
    """It measures what is kept, and a killed run loses no more than a few steps."""
    arguments = ["fit", "--config", "configs/gemma2_2b_it.yaml", "--config", path]
    assert f"main.py {' '.join(arguments)}" in Path(path).read_text(encoding="utf-8")
    config = parser.parse_args(arguments)["fit"]
    kept = [one.init_args for one in config.trainer.callbacks if one.class_path.endswith("ModelCheckpoint")]
    assert [one.monitor for one in kept] == ["val/exact_match", None]
    assert kept[1].every_n_train_steps == 50
    assert kept[1].save_top_k == 1
    assert config.model.base == "google/gemma-2-2b-it"
    assert config.model.gradient_checkpointing
    assert config.data.packing
    assert config.trainer.precision == "bf16-mixed"
    # Tokens of an optimizer step, as the comments say; those of the recipe itself are 8 × 2,048.
    devices = config.trainer.devices * config.trainer.num_nodes
    tokens = config.data.max_length * config.data.batch_size * config.trainer.accumulate_grad_batches * devices
    assert tokens == {"gpu_24gb": 1, "gpu_80gb": 1, "gpus_8": 4, "nodes_2": 8}[Path(path).stem] * 16384


def with_change(keys, value, last=None):
    config = copy.deepcopy(yaml.safe_load(Path("configs/quickstart.yaml").read_text(encoding="utf-8")))
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
    assert not validator.is_valid(with_change(keys, value))


def test_a_callback_of_ones_own_fits(validator):
    config = with_change(("trainer", "callbacks"), [{"class_path": "mine.Mine", "init_args": {"any": 1}}])
    assert validator.is_valid(config)


@pytest.mark.slow
def test_the_schema_is_current(tmp_path):
    """It is what the command writes now: python scripts/make_schema.py."""
    subprocess.run([sys.executable, "scripts/make_schema.py", str(tmp_path / "schema.json")], check=True)
    assert (tmp_path / "schema.json").read_text(encoding="utf-8") == SCHEMA.read_text(encoding="utf-8")
