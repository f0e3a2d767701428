"""What vLLM's own parser classes read from turns that our templates write, where vLLM can be imported."""

import json
from importlib.resources import files

import pytest
from tests.helpers.native_conversations import SYNTAXES, Generator, native_tokenizer

from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer
from fc_lightning.conversation.native_calls import FUNCTIONGEMMA, GEMMA4
from fc_lightning.conversation.parsing import render_turn
from fc_lightning.conversation.types import Message, ToolCall

PLUGIN = files("fc_lightning.commands.export") / "vllm_functiongemma.txt"
PARSERS = {
    "hermes": ("hermes_tool_parser", "Hermes2ProToolParser"),
    "gemma4": ("gemma4_engine_tool_parser", "Gemma4EngineToolParser"),
    "functiongemma": ("functiongemma_tool_parser", "FunctionGemmaToolParser"),
    "exported plugin": ("vllm_tool_parser", "TypedFunctionGemmaParser"),
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", PARSERS)
def test_vllms_parser_reads_the_calls_of_a_turn(name, tmp_path, monkeypatch):
    pytest.importorskip("vllm")
    from importlib import import_module

    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    module, class_name = PARSERS[name]
    if name == "hermes":
        tokenizer, _ = load_tokenizer("tests/models/tiny_gemma2", None, tuple(SpecialToken))
        package = "vllm.tool_parsers."
    elif name == "exported plugin":
        tokenizer = native_tokenizer("functiongemma")
        (tmp_path / "vllm_tool_parser.py").write_text(PLUGIN.read_text(encoding="utf-8"), encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        package = ""
    else:
        tokenizer = native_tokenizer(name)
        package = "vllm.tool_parsers."
    parser_class = getattr(import_module(f"{package}{module}"), class_name)
    # Its parsers for native formats take the type of a value from the tool, or read strings alone.
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    request = ChatCompletionRequest(messages=[{"role": "user", "content": "?"}], model="any", tools=tools)
    for seed in range(200):
        calls = [
            ToolCall(one["function"]["name"], one["function"]["arguments"]) for one in Generator(seed, GEMMA4).calls()
        ]
        if name in ("functiongemma", "gemma4"):
            typed = {"days": seed} if name == "gemma4" else {}
            calls = [ToolCall("f", {"city": f"São {seed}, {{1}}", **typed}) for _ in calls]
        message = Message("assistant", tool_calls=tuple(calls))
        text = render_turn(message) if name == "hermes" else SYNTAXES.get(name, FUNCTIONGEMMA).render_turn(message)
        found = parser_class(tokenizer, request.tools).extract_tool_calls(text, request)
        functions = [each.function for each in found.tool_calls]
        assert [ToolCall(each.name, json.loads(each.arguments)) for each in functions] == calls
