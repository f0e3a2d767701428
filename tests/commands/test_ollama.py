"""The Modelfile of a GGUF export, rendered by Go's own template engine where Go is installed."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fc_lightning.chat_template.template import ChatTemplate, openai_message
from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer
from fc_lightning.commands.export.gguf import modelfile
from fc_lightning.conversation.native_calls import FUNCTIONGEMMA
from fc_lightning.data.formats import read_row

NEEDS_GO = pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed")


def template_of(*tags: str, **options) -> ChatTemplate:
    tokenizer, _ = load_tokenizer("tests/models/tiny_gemma2", None, tags or tuple(SpecialToken))
    return ChatTemplate(tokenizer, **options)


def in_order(value):
    """Ollama gives arguments and properties to templates sorted by name."""
    if isinstance(value, dict):
        return {key: in_order(value[key]) for key in sorted(value)}
    return [in_order(each) for each in value] if isinstance(value, list) else value


def render_with_go(text: str, requests: list[dict], folder: Path) -> list[str]:
    (folder / "template").write_text(re.search(r'TEMPLATE """(.*)"""', text, re.DOTALL)[1], encoding="utf-8")
    command = ["go", "run", "tests/helpers/ollama_render.go", str(folder / "template")]
    lines = "".join(map(json.dumps, requests))
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(map(json.loads, done.stdout.splitlines()))


def schema(**properties) -> dict:
    return {"type": "object", "properties": properties, "required": list(properties)[:1]}


TOOLS = [
    ("get_time", 'Get <the> "time" & Ö', schema(city={"type": "string"}, unit={"type": "string", "enum": ["a", "b"]})),
    ("sum_up", "", schema(list={"type": "array", "description": "x\ny", "items": {"type": "integer"}})),
    ("stop", "Stop", {}),
]
CALLS = [
    {"name": "get_time", "arguments": {"city": 'a"<b>\n', "more": [1, 2.5, None, True, {"x": [], "y": {}}]}},
    {"name": "stop", "arguments": {}},
]
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What  is?\n\tÖ 🙂"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": call} for call in CALLS],
        "reasoning_content": "so",
    },
    {"role": "tool", "content": '{"a": 1}'},
    {"role": "tool", "content": "done"},
    {"role": "assistant", "content": "One moment", "tool_calls": [{"function": CALLS[1]}]},
    {"role": "tool", "content": ""},
    {"role": "assistant", "content": "It is.", "reasoning_content": "well"},
    {"role": "user", "content": "And?"},
]


@pytest.mark.slow
@NEEDS_GO
def test_ollama_renders_what_the_training_rendered(tmp_path):
    template = template_of()
    names = ("name", "description", "parameters")
    tools = [{"type": "function", "function": dict(zip(names, tool, strict=True))} for tool in TOOLS]
    requests = [
        {"messages": CONVERSATION[first:last], "tools": offered}
        for first in (0, 1, 2)
        for last in range(first + 1, len(CONVERSATION) + 1)
        for offered in ([], tools)
    ]
    for line in Path("data/quickstart/validation.jsonl").read_text(encoding="utf-8").splitlines():
        conversation = read_row(json.loads(line))
        messages = [openai_message(message) for message in conversation.messages]
        for message in messages:
            for call in message.get("tool_calls", ()):
                call["function"]["arguments"] = in_order(call["function"]["arguments"])
        offered = [tool.to_openai() for tool in conversation.tools]
        for tool in offered:
            parameters = tool["function"]["parameters"]
            parameters["properties"] = dict(sorted(parameters["properties"].items()))
        requests += [{"messages": messages[: last + 1], "tools": offered} for last in range(len(messages))]
    assert len(requests) > 250
    expected = [
        template.tokenizer.apply_chat_template(
            request["messages"],
            tools=request["tools"] or None,
            chat_template=template.source,
            tokenize=False,
            add_generation_prompt=True,
        ).removeprefix("<bos>")  # Ollama's runner adds it
        for request in requests
    ]
    assert render_with_go(modelfile(template), requests, tmp_path) == expected


def test_the_modelfile_names_model_and_end_and_has_ollamas_tag_for_calls():
    text = modelfile(template_of())
    assert text.startswith("FROM ./model.gguf\n")
    assert "PARAMETER stop <end_of_turn>\n" in text
    assert text.count('"""') == 2
    # Ollama takes the first text inside of `if .ToolCalls` as the tag of a call.
    inside = text.split("{{- if .ToolCalls }}")[1]
    first = next(part for part in re.split(r"\{\{.*?\}\}", inside) if part)
    assert first.strip() == "<tool_call>"


def test_other_templates_are_not_translated(tmp_path):
    native = modelfile(template_of(*FUNCTIONGEMMA.tokens))
    assert native.splitlines()[1:3] == ["RENDERER functiongemma", "PARSER functiongemma"]
    own = tmp_path / "own.jinja"
    own.write_text("{% generation %}{% endgeneration %}", encoding="utf-8")
    assert modelfile(template_of(file=own)) is None
    assert modelfile(template_of(render="verbatim")) is None
