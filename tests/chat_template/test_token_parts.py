"""Token parts: each supervised token is what the parser says its text is, for every template and both renderings."""

import json

import pytest

from fc_lightning.chat_template.template import ChatTemplate, ChatTemplateError
from fc_lightning.chat_template.token_parts import TokenWeights, supervised_parts
from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer
from fc_lightning.conversation.turn_parts import TURN_PARTS
from fc_lightning.conversation.types import Conversation, Message, Tool, ToolCall
from fc_lightning.data.formats import read_row

TINY = "tests/models/tiny_gemma2"
CONVERSATION = Conversation(
    "x",
    (
        Message("user", "How is Rome? <tool_call>"),
        Message("assistant", "", "For Rome.", (ToolCall("clock", {"city": "Rome"}), ToolCall("sky", {"n": [1, 2]}))),
        Message("tool", '{"name": "clock"}'),
        Message("assistant", "Noon and blue."),
    ),
    (Tool("clock"), Tool("sky")),
)


def template_of(tags: bool, render: str = "canonical") -> ChatTemplate:
    return ChatTemplate(load_tokenizer(TINY, None, tuple(SpecialToken) if tags else ())[0], render)


def parts_by_token(template: ChatTemplate, conversation: Conversation, supervise: str = "assistant"):
    """Each supervised token's text with its part, the text from the tokenizer's own decoding."""
    rendered = template.render(template.messages(conversation), conversation)
    encoded = template.encode([rendered], supervise, starts=True)[0]
    ends = template.tokenizer.convert_ids_to_tokens(ChatTemplate.end_ids(template.tokenizer))
    parts = supervised_parts(rendered, encoded, ends)
    ids = [id for id, flag in zip(encoded.input_ids, encoded.supervised_mask, strict=True) if flag]
    assert len(ids) == len(parts)
    return [(template.tokenizer.decode([id]), part) for id, part in zip(ids, parts, strict=True)]


def text_of(tokens, part: str) -> str:
    """The text of one part; a token that begins or ends with syntax around a name brings that along."""
    return "".join(text for text, number in tokens if number == TURN_PARTS.index(part))


def names_in(text: str) -> str:
    return text.translate(str.maketrans("", "", "\"': {},"))


@pytest.mark.parametrize("tags", [True, False])
def test_each_supervised_token_has_its_part(tags):
    tokens = parts_by_token(template_of(tags), CONVERSATION)
    assert text_of(tokens, "reasoning").split() == ["For", "Rome."]
    assert names_in(text_of(tokens, "function_name")) == "clocksky"
    assert names_in(text_of(tokens, "argument_name")) == "cityn"
    assert names_in(text_of(tokens, "argument_value")) == "Rome[12]"
    assert text_of(tokens, "answer") == "Noon and blue."
    assert text_of(tokens, "tag").count("<end_of_turn>") == 2
    assert max(part for _, part in tokens) < len(TURN_PARTS)


def test_what_is_no_model_turn_counts_as_the_prompt():
    tokens = parts_by_token(template_of(True), CONVERSATION, "all")
    prompt = "".join(text for text, part in tokens if part == len(TURN_PARTS))
    assert prompt.startswith("<bos><start_of_turn>user\n<tools>")
    assert "How is Rome?" in prompt
    assert "Noon" not in prompt
    assert names_in(text_of(tokens, "function_name")) == "clocksky"


def test_verbatim_rows_have_parts_too():
    call = "<tool_call>\n{'arguments': {'city': 'Rome'}, 'name': 'clock'}\n</tool_call>"
    turns = [{"from": "human", "value": "Time?"}, {"from": "gpt", "value": f"<think>So.</think>{call}"}]
    conversation = read_row({"id": "v", "conversations": turns}, None, "v")
    tokens = parts_by_token(template_of(False, "verbatim"), conversation)
    assert text_of(tokens, "reasoning") == "So."
    assert names_in(text_of(tokens, "function_name")) == "clock"
    assert names_in(text_of(tokens, "argument_value")) == "Rome"
    assert text_of(tokens, "tag").endswith("<end_of_turn><eos>")


def test_real_rows_are_covered_by_the_parts_of_their_calls():
    template = template_of(True)
    with open("data/quickstart/validation.jsonl", encoding="utf-8") as lines:
        rows = [read_row(json.loads(line), None, "") for line in lines]
    names = 0
    for row in rows[:40]:
        tokens = parts_by_token(template, row)
        calls = [call for message in row.messages for call in message.tool_calls]
        assert names_in(text_of(tokens, "function_name")) == "".join(call.name for call in calls)
        assert names_in(text_of(tokens, "argument_name")) == "".join(name for call in calls for name in call.arguments)
        names += len(calls)
    assert names > 25


def test_weights_are_given_by_part():
    weights = TokenWeights(argument_value=2.0, tag=0.0)
    assert weights.by_part[TURN_PARTS.index("argument_value")] == 2.0
    assert weights.by_part[TURN_PARTS.index("tag")] == 0.0
    assert weights.by_part[-1] == 1.0
    assert set(TokenWeights().by_part) == {1.0}
    for wrong in ({"tag": -1.0}, dict.fromkeys(TURN_PARTS, 0.0)):
        with pytest.raises(ChatTemplateError, match=r"model\.token_weights"):
            TokenWeights(**wrong)
