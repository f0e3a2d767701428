"""What mlx-lm's own parser modules read from turns that our templates write, where mlx-lm can be imported."""

import pytest
from tests.helpers.native_conversations import SYNTAXES, Generator

from fc_lightning.conversation.native_calls import GEMMA4
from fc_lightning.conversation.parsing import render_turn
from fc_lightning.conversation.types import Message, ToolCall


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["json_tools", "gemma4", "function_gemma"])
def test_mlx_reads_the_calls_of_a_turn(name):
    parser = pytest.importorskip(f"mlx_lm.tool_parsers.{name}")
    for seed in range(200):
        for drawn in Generator(seed, GEMMA4).calls():
            call = ToolCall(drawn["function"]["name"], drawn["function"]["arguments"])
            if name == "function_gemma":  # it reads flat arguments only
                call = ToolCall("f", {"city": f"São {seed}", "days": seed, "now": True})
            message = Message("assistant", tool_calls=(call,))
            syntax = next((each for each in SYNTAXES.values() if each.mlx_parser == name), None)
            text = syntax.render_turn(message) if syntax else render_turn(message)
            body = text.split(parser.tool_call_start)[1].split(parser.tool_call_end)[0]
            assert parser.parse_tool_call(body) == call.to_dict()
