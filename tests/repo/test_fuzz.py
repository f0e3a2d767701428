"""Random configurations train or are rejected in one line: twenty here, and any number by the command:

python scripts/fuzz_configurations.py --count 300
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from tests.helpers.command_line import parser

SCRIPT = Path("scripts/fuzz_configurations.py")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("fuzz_configurations", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_value_is_valid_by_its_type(script):
    """A value that the parser refuses would test nothing."""
    keys = parser().parse_args(["fit", "--config", "configs/debug/tiny.yaml"])["fit"]
    for key, values in script.CHOICES.items():
        assert key in keys
        for value in values:
            parser().parse_object({"fit": {**nested(key, value)}, "subcommand": "fit"})


def nested(key, value):
    group, name = key.split(".")
    return {group: {name: value}}


def test_a_seed_is_a_combination(script):
    combinations = [script.combination(seed) for seed in range(300)]
    assert combinations[7] == script.combination(7)
    settings = {(group, name) for one in combinations for group, keys in one.items() for name in keys}
    assert {tuple(key.split(".")) for key in script.CHOICES} <= settings
    assert 10 < sum(one["trainer"].get("devices") == 2 for one in combinations) < 60


@pytest.mark.slow
def test_twenty_random_combinations():
    """The seed is in the output."""
    done = subprocess.run([sys.executable, str(SCRIPT), "--count", "20"], capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stdout
