"""Tool results that clients send in any order are rendered in the order of their calls, as in training."""

import json
from itertools import permutations

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer
from fc_lightning.data.formats import read_row

TEMPLATE = ChatTemplate(load_tokenizer("tests/models/tiny_gemma2", None, tuple(SpecialToken))[0])
QUESTION, ANSWER = {"role": "user", "content": "Well?"}, {"role": "assistant", "content": "So."}


def calls(*ids):
    functions = [{"id": id, "type": "function", "function": {"name": f"call_{id}", "arguments": "{}"}} for id in ids]
    return {"role": "assistant", "content": None, "tool_calls": functions}


def result(id, content=None):
    return {"role": "tool", "tool_call_id": id, "content": content or {"of": id}}


def served(messages):
    """The text that a server makes of a client's messages."""
    return render_jinja_template([messages], tools=None, chat_template=TEMPLATE.source, **TEMPLATE.variables)[0][0]


def trained(messages):
    conversation = read_row({"messages": messages})
    return TEMPLATE.render(TEMPLATE.messages(conversation), conversation).text


def contents(text):
    return [part.split("\n</tool_response>")[0] for part in text.split("<tool_response>\n")[1:]]


@pytest.mark.parametrize("order", list(permutations("abc")))
def test_results_follow_their_calls(order):
    messages = [QUESTION, calls(*"abc"), *map(result, order), ANSWER, QUESTION, calls(*"de"), result("e"), result("d")]
    text = served([*messages, ANSWER])
    assert contents(text) == [json.dumps({"of": id}) for id in "abcde"]
    assert text == trained([*messages, ANSWER])
    assert text.startswith(served(messages))  # the rendering of a conversation begins that of its continuation


def test_results_of_no_call_come_last_and_results_without_ids_stay():
    unknown = [QUESTION, calls("a", "b"), result("z", "of nothing"), result("b"), result("a"), ANSWER]
    assert contents(served(unknown)) == ['{"of": "a"}', '{"of": "b"}', "of nothing"]
    assert served(unknown) == trained(unknown)
    same = [QUESTION, calls("a", "a"), result("a", "first"), result("a", "second"), ANSWER]
    assert contents(served(same)) == ["first", "second"]
    without = [{key: value for key, value in one.items() if key != "tool_call_id"} for one in unknown]
    assert contents(served(without)) == ["of nothing", '{"of": "b"}', '{"of": "a"}']
