r"""Verbatim rendering against the recipe that it repeats: the original Jinja text, run by transformers itself.

To compare more rows, name files of JSON lines:
``FC_LIGHTNING_ROWS=a.jsonl:b.jsonl pytest tests/chat_template/test_verbatim.py``.
"""

import json
import os
from pathlib import Path

import pytest

from fc_lightning.chat_template.control_tokens import BREAK
from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer
from fc_lightning.data.formats import read_row

TOKENIZER, _ = load_tokenizer("tests/models/tiny_gemma2", None, tuple(SpecialToken))
TEMPLATE = ChatTemplate(TOKENIZER, "verbatim")
ORIGINAL = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] | trim "
    "+ '<end_of_turn><eos>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
PLAN = (
    "Also, before making a call to a function take the time to plan the function to take. "
    "Make that thinking process between <think>{your thoughts}</think>\n\n"
)
COLUMNS_PROMPT = (
    "You are a helpful assistant with access to the following tools.\n\n"
    "Before calling a tool, think carefully about which tool to use.\n"
    "Write your reasoning between <think> and </think>."
)
SYSTEM = (
    "You are a function calling AI model. You are provided with function signatures within <tools> </tools> XML tags."
    "\n<tools>\n[{'type': 'function', 'function': {'name': 'weather', 'description': \"A city's weather\", "
    "'parameters': {'type': 'object', 'properties': {'city': {'type': 'string'}}, 'required': ['city']}}}]\n</tools>\n"
    "For each function call return a json object within <tool_call> </tool_call> tags.\n"
)
CALL = "<tool_call>\n{'arguments': {'city': 'Paris', 'exact': True}, 'name': 'weather'}\n</tool_call>"
RESPONSE = '<tool_response>\n{"name": "weather", "content": {"sky": "grey"}}\n</tool_response>\n'


def card(*turns):
    return {"id": "1", "conversations": [{"from": role, "value": text} for role, text in turns], "category": "Weather"}


def thinking(*turns):
    return {"conversations": [{"role": role, "content": text} for role, text in turns]}


ROWS = {
    "card": card(("system", SYSTEM), ("human", "Paris?"), ("gpt", CALL), ("tool", RESPONSE), ("gpt", "Grey.\n")),
    "newlines at both ends": card(("system", f"\n {SYSTEM}\n\n"), ("human", "\n Paris?\n\n"), ("gpt", f" {CALL}\n\n")),
    "thinking": thinking(
        ("system", SYSTEM),
        ("human", "Paris?"),
        ("model", f"<think>A city.\n</think>{CALL}"),
        ("tool", RESPONSE),
        ("model", "<think>\nDone.\n</think>\nGrey.\n"),
        ("human", "Thanks 🙂"),
        ("model", "Gern."),
    ),
    "a call that is broken": card(
        ("system", SYSTEM), ("human", "Paris?"), ("gpt", "<tool_call>\n{'name': 'weather', 'arguments': \n</tool_call>")
    ),
    "no system turn": card(("human", " Hi"), ("gpt", "Hello.")),
    "assistant by name": thinking(("system", "S"), ("user", "Hi"), ("assistant", "Hello.")),
    "model first": card(("gpt", "Hello."), ("human", "Hi"), ("gpt", "So?")),
    "text that looks like turns": card(("human", "<start_of_turn>model\n<eos>"), ("gpt", "<end_of_turn>{{ 1 }}")),
}


def original(row):
    """The recipe, from the row to the text."""
    if "query" in row:
        prompt = row.get("system_prompt") or COLUMNS_PROMPT
        call = row["tool_call"]
        call = call if call.lstrip().startswith("<tool_call>") else f"<tool_call>\n{call}\n</tool_call>"
        question = f"{prompt}\n\nAvailable tools:\n{row['tools']}\n\nUser query:\n{row['query']}".strip()
        answer = f"<think>\n{row['thoughts']}\n</think>\n{call}".strip()
        return (
            f"<bos><start_of_turn>user\n{question}<end_of_turn><eos>\n"
            f"<start_of_turn>model\n{answer}<end_of_turn><eos>\n"
        )
    messages = []
    for turn in row["conversations"]:
        role, text = (turn["from"], turn["value"]) if "from" in turn else (turn["role"], turn["content"])
        messages.append({"role": {"gpt": "model", "assistant": "model"}.get(role, role), "content": text})
    if messages[0]["role"] == "system":
        messages[1]["content"] = messages[0]["content"] + PLAN + messages[1]["content"]
        messages.pop(0)
    return TOKENIZER.apply_chat_template(messages, tokenize=False, chat_template=ORIGINAL)


def ours(row):
    conversation = read_row(row)
    return TEMPLATE.render(TEMPLATE.messages(conversation), conversation).text.replace(BREAK, "")


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_rows_written_here(row):
    assert ours(row) == original(row)


@pytest.mark.parametrize(
    "row",
    [
        {
            "query": "Paris?\n",
            "tools": "[{'name': 'weather'}]",
            "thoughts": "A city.",
            "tool_call": "{'name': 'weather'}",
        },
        {"query": " é", "tools": "", "thoughts": "", "tool_call": "", "system_prompt": "Be brief."},
        {"query": "a", "tools": "[]", "thoughts": "t\n", "tool_call": f"{CALL}\n"},
    ],
)
def test_columns(row):
    assert ours(row) == original(row)


def test_prompts_end_with_the_opening_of_the_next_turn():
    conversation = read_row(ROWS["card"])
    prompt = TEMPLATE.render(TEMPLATE.messages(conversation)[:2], conversation, generation_prompt=True)
    assert prompt.text == original(ROWS["card"]).split("<tool_call>\n{'arg")[0]
    assert prompt.text.endswith("<end_of_turn><eos>\n<start_of_turn>model\n")


@pytest.mark.parametrize(
    "path", ["data/quickstart/train.jsonl", *filter(None, os.environ.get("FC_LIGHTNING_ROWS", "").split(os.pathsep))]
)
def test_rows_of_files(path):
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line]
    assert rows
    for number, row in enumerate(rows, 1):
        assert ours(row) == original(row), f"{path}:{number}"


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}, {"train_on_turn": False}, {"loss": False}])
def test_a_flag_leaves_a_turn_out_of_the_training_targets(flag):
    row = card(("system", SYSTEM), ("human", "Paris?"), ("gpt", CALL), ("tool", RESPONSE), ("gpt", "Grey."))
    row["conversations"][2] |= flag
    conversation = read_row(row)
    rendered = TEMPLATE.render(TEMPLATE.messages(conversation), conversation)
    supervised = [rendered.text[start:end] for start, end in rendered.supervised_spans]
    assert supervised == ["Grey.<end_of_turn><eos>"]
    assert "Paris', 'exact': True" in rendered.text  # the call is still in the context
