"""The tool languages of FunctionGemma and Gemma 4: renderings, masks, reading what was written, and which is chosen."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.chat import WEATHER, encode, mark, pieces, render
from tests.helpers.native_conversations import SYNTAXES, Generator, native_tokenizer
from tests.helpers.native_reference import reference
from tests.helpers.tokenizers import tokenizer_of
from transformers.utils.chat_template_utils import render_jinja_template

from fc_lightning.chat_template.response_template import response_template
from fc_lightning.chat_template.template import ChatTemplate, ChatTemplateError
from fc_lightning.chat_template.token_parts import supervised_parts
from fc_lightning.chat_template.tokens import SpecialToken, register_tokens, save_tokenizer
from fc_lightning.chat_template.tool_formats import native_syntax
from fc_lightning.conversation.turn_parts import TURN_PARTS
from fc_lightning.conversation.types import Conversation, Message, Tool, ToolCall
from fc_lightning.evaluation.turns import evaluate_turn
from fc_lightning.utils.pretrained import BaseModelError

TOKENIZERS = {name: native_tokenizer(name) for name in SYNTAXES}
TEMPLATES = {name: ChatTemplate(tokenizer) for name, tokenizer in TOKENIZERS.items()}
NAMES = pytest.mark.parametrize("name", SYNTAXES)

PARIS = ToolCall("weather", {"exact": True, "city": "Paris"})
OSLO = ToolCall("weather", {"days": [1, {"to": 2.5}], "city": "Oslo"})
DIALOGUE = Conversation(
    "",
    (
        Message("system", " Be brief.\n"),
        Message("user", "Both? "),
        Message("assistant", "I look.", tool_calls=(PARIS, OSLO)),
        Message("tool", "grey"),
        Message("tool", '{"sky": "blue"}'),
        Message("assistant", "Grey and blue."),
        Message("user", "Now?"),
        Message("assistant", "Look.", supervised=False),
        Message("user", "Well?"),
        Message("assistant", tool_calls=(ToolCall("clock", {}),)),
    ),
    (WEATHER, Tool("clock")),
)
REASONING = Conversation("", (Message("user", "2+2?"), Message("assistant", "4.", "Two\nand two.")))

# Supervised text is between ⟦ and ⟧.
GOLDEN = {
    "functiongemma": (
        "<bos><start_of_turn>developer\nBe brief."
        "<start_function_declaration>declaration:weather{description:<escape>The weather's state.<escape>,parameters:"
        "{properties:{city:{description:<escape><escape>,type:<escape>STRING<escape>}},required:[<escape>city<escape>],"
        "type:<escape>OBJECT<escape>}}<end_function_declaration>"
        "<start_function_declaration>declaration:clock{description:<escape><escape>}<end_function_declaration>"
        "<end_of_turn>\n<start_of_turn>user\nBoth?<end_of_turn>\n<start_of_turn>model\n"
        "⟦I look.<start_function_call>call:weather{city:<escape>Paris<escape>,exact:true}<end_function_call>"
        "<start_function_call>call:weather{city:<escape>Oslo<escape>,days:[1,{to:2.5}]}<end_function_call>"
        "<start_function_response>⟧response:weather{value:<escape>grey<escape>}<end_function_response>"
        '<start_function_response>response:weather{value:<escape>{"sky": "blue"}<escape>}<end_function_response>'
        "⟦Grey and blue.<end_of_turn>⟧\n<start_of_turn>user\nNow?<end_of_turn>\n"
        "<start_of_turn>model\nLook.<end_of_turn>\n<start_of_turn>user\nWell?<end_of_turn>\n<start_of_turn>model\n"
        "⟦<start_function_call>call:clock{}<end_function_call><start_function_response>⟧",
        "<bos><start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n"
        "⟦<think>\nTwo\nand two.\n</think>\n4.<end_of_turn>⟧\n",
    ),
    "gemma4": (
        "<bos><|turn>system\nBe brief."
        '<|tool>declaration:weather{description:<|"|>The weather\'s state.<|"|>,parameters:'
        '{properties:{city:{type:<|"|>STRING<|"|>}},required:[<|"|>city<|"|>],type:<|"|>OBJECT<|"|>}}<tool|>'
        '<|tool>declaration:clock{description:<|"|><|"|>}<tool|>'
        "<turn|>\n<|turn>user\nBoth?<turn|>\n<|turn>model\n"
        '⟦I look.<|tool_call>call:weather{city:<|"|>Paris<|"|>,exact:true}<tool_call|>'
        '<|tool_call>call:weather{city:<|"|>Oslo<|"|>,days:[1,{to:2.5}]}<tool_call|>'
        '<|tool_response>⟧response:weather{value:<|"|>grey<|"|>}<tool_response|>'
        '<|tool_response>response:weather{value:<|"|>{"sky": "blue"}<|"|>}<tool_response|>'
        "⟦Grey and blue.<turn|>⟧\n<|turn>user\nNow?<turn|>\n"
        "<|turn>model\nLook.<turn|>\n<|turn>user\nWell?<turn|>\n<|turn>model\n"
        "⟦<|tool_call>call:clock{}<tool_call|><|tool_response>⟧",
        "<bos><|turn>user\n2+2?<turn|>\n<|turn>model\n⟦<|channel>thought\nTwo\nand two.\n<channel|>4.<turn|>⟧\n",
    ),
}


@NAMES
def test_texts_and_masks_are_those_written_by_hand(name):
    for conversation, expected in zip((DIALOGUE, REASONING), GOLDEN[name], strict=True):
        assert mark(encode(conversation, TEMPLATES[name]), TOKENIZERS[name]) == expected


@NAMES
def test_each_token_of_a_turn_with_a_call_is_supervised_or_not(name):
    call = Conversation("", (Message("user", "Now"), Message("assistant", tool_calls=(ToolCall("f", {"a": 7}),))))
    encoded = encode(call, TEMPLATES[name])
    tokens = [TOKENIZERS[name].decode([token]) for token in encoded.input_ids]
    first = tokens.index(SYNTAXES[name].call_tags[0])
    assert encoded.supervised_mask == [False] * first + [True] * (len(tokens) - first)
    assert tokens[-2:] == [SYNTAXES[name].call_tags[1], SYNTAXES[name].response_tags[0]]
    parts = supervised_parts(render(call, TEMPLATES[name]), encoded, [tokens[-1]], SYNTAXES[name])
    known = [(token, TURN_PARTS[part]) for token, part in zip(tokens[first:], parts, strict=True)]
    assert [(token, part) for token, part in known if part != "tag"] == [
        ("f", "function_name"),
        ("a", "argument_name"),
        ("7", "argument_value"),
    ]


def written(name, seeds):
    for seed in seeds:
        messages, tools, asks = Generator(seed, SYNTAXES[name]).conversation()
        options = {"tools": tools or None, "add_generation_prompt": asks, "bos_token": "<bos>"}
        texts, _ = render_jinja_template([messages], chat_template=TEMPLATES[name].source, **options)
        yield messages, tools, asks, options, texts[0]


@NAMES
@pytest.mark.parametrize(
    "seeds", [range(60), pytest.param(range(60, 1000), marks=pytest.mark.slow)], ids=["60", "1000"]
)
def test_renderings_are_those_of_the_documented_format(name, seeds):
    for messages, tools, asks, _, text in written(name, seeds):
        assert text == reference(name, messages, tools, asks)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL carries Gemma 4's official template")
def test_renderings_are_those_of_gemma_4s_official_template():
    import trl

    official = (Path(trl.__file__).parent / "chat_templates" / "gemma4_v5.jinja").read_text(encoding="utf-8")
    for messages, _, _, options, text in written("gemma4", range(1000)):
        assert render_jinja_template([messages], chat_template=official, **options)[0][0] == text


@NAMES
def test_a_prompt_is_the_beginning_of_its_continuation(name):
    template, messages = TEMPLATES[name], TEMPLATES[name].messages(DIALOGUE)
    full = template.render(messages, DIALOGUE).text
    for index in template.model_turns(messages):
        assert full.startswith(template.render(messages[:index], DIALOGUE, generation_prompt=True).text)
        assert full.startswith(template.render(messages[: index + 1], DIALOGUE).text)


def test_thinking_is_switched_on_as_gemma_4_expects():
    options = {"chat_template": TEMPLATES["gemma4"].source, "bos_token": "<bos>", "enable_thinking": True}
    texts, _ = render_jinja_template([[{"role": "user", "content": "?"}]], **options)
    assert texts[0] == "<bos><|turn>system\n<|think|>\n<turn|>\n<|turn>user\n?<turn|>\n"


texts = st.lists(st.sampled_from(pieces), max_size=6).map("".join)
names = st.from_regex(r"[a-z_][a-zA-Z0-9_]{0,4}", fullmatch=True)
numbers = st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=5,
)
calls = st.builds(ToolCall, names, st.dictionaries(names, values, max_size=3))
answers = texts.map(str.strip).filter(lambda text: "think>" not in text)
turns = st.builds(Message, st.just("assistant"), answers, st.none() | answers, st.lists(calls, max_size=2).map(tuple))


@NAMES
@settings(max_examples=60, deadline=None)
@given(message=turns)
def test_what_is_rendered_is_read_back(name, message):
    """By the parser that evaluates turns, and by transformers with the exported response template."""
    syntax, template = SYNTAXES[name], TEMPLATES[name]
    conversation = Conversation("", (Message("user", "?"), message))
    rendered = render(conversation, template)
    ((begin, end),) = rendered.supervised_spans
    ending = syntax.response_tags[0] if message.tool_calls else template.chat_format.turn_end
    said = rendered.text[begin:end].removesuffix(ending)
    assert said == syntax.render_turn(message)
    turn = syntax.parse_turn(said)
    assert (turn.reasoning, turn.content, turn.tool_calls, turn.errors) == (
        message.reasoning,
        message.content,
        message.tool_calls,
        (),
    )
    tokenizer = TOKENIZERS[name]
    tokenizer.response_template = response_template(template.chat_format, "<eos>", syntax)
    parsed = tokenizer.parse_response(rendered.text[begin:end], prefix=rendered.text[:begin])
    functions = [call["function"] for call in parsed.get("tool_calls") or []]
    assert [ToolCall(each["name"], each["arguments"]) for each in functions] == list(message.tool_calls)
    assert (parsed.get("content") or "") == message.content
    assert (parsed.get("reasoning_content") or "") == (message.reasoning or "")


@NAMES
@pytest.mark.parametrize(
    "body",
    [
        "call:f{a:}",
        "call:f{a:1",
        "f{a:1}",
        "call:f{a: 1}",
        'call:f{"a":1}',
        "call:f{a:'x'}",
        "call:f{a:01}",
        "call:{}",
        "",
    ],
)
def test_a_call_in_another_form_is_an_error_and_stays_text_for_clients(name, body):
    syntax, tokenizer = SYNTAXES[name], TOKENIZERS[name]
    text = f"{syntax.call_tags[0]}{body}{syntax.call_tags[1]}"
    turn = syntax.parse_turn(text)
    assert (len(turn.errors), turn.tool_calls) == (1, ())
    assert not evaluate_turn(text, [ToolCall("f", {"a": 1})], syntax=syntax).parsed
    tokenizer.response_template = response_template(TEMPLATES[name].chat_format, "<eos>", syntax)
    prefix = TEMPLATES[name].chat_format.generation_prompt
    assert tokenizer.parse_response(text, prefix=prefix) == {"role": "assistant", "content": text}


@NAMES
def test_a_call_that_the_format_cannot_write_is_refused(name):
    syntax = SYNTAXES[name]
    for call in (
        ToolCall("f", {"a b": 1}),
        ToolCall("f g", {}),
        ToolCall("f", {"a": f"x{syntax.quote}y"}),
        ToolCall("f", {"a": [syntax.call_tags[1]]}),
    ):
        conversation = Conversation("", (Message("user", "?"), Message("assistant", tool_calls=(call,))))
        with pytest.raises(ChatTemplateError, match=f"{name} cannot write a call of f"):
            TEMPLATES[name].messages(conversation)


@NAMES
def test_tags_in_texts_stay_text(name):
    syntax = SYNTAXES[name]
    hostile = " ".join(syntax.tokens)
    messages = (Message("user", hostile), Message("assistant", tool_calls=(PARIS,)), Message("tool", hostile))
    clean = tuple(replace(message, content="x") for message in messages)
    counts = []
    for each in (messages, clean):
        ids = encode(Conversation("", each, (Tool("f", each[0].content),)), TEMPLATES[name]).input_ids
        counts.append([ids.count(TOKENIZERS[name].convert_tokens_to_ids(token)) for token in syntax.tokens])
    assert counts[0] == counts[1]


@NAMES
def test_the_exported_tokenizer_names_mlxs_parser(name, tmp_path):
    parsers = {"functiongemma": "function_gemma", "gemma4": "gemma4"}
    save_tokenizer(TOKENIZERS[name], tmp_path, SYNTAXES[name].mlx_parser)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tool_parser_type"] == parsers[name]


@NAMES
def test_a_native_format_is_chosen_where_its_tags_are_tokens(name):
    assert native_syntax(TOKENIZERS[name]) is native_syntax(TOKENIZERS[name], name) is SYNTAXES[name]
    assert native_syntax(TOKENIZERS[name], "hermes") is None
    assert "<tool_call>" in ChatTemplate(native_tokenizer(name), tool_format="hermes").source
    for other in ("gemma", "gemma4", "chatml"):
        plain = tokenizer_of(other, "<bos>", "<eos>")
        assert native_syntax(plain) is None
        with pytest.raises(BaseModelError, match=f"tool_format: {name}"):
            native_syntax(plain, name)
    # One missing token is enough.
    almost = tokenizer_of("gemma" if name == "functiongemma" else "gemma4", "<bos>", "<eos>")
    register_tokens(almost, SYNTAXES[name].tokens[:-1])
    assert native_syntax(almost) is None


@NAMES
def test_no_token_is_added_to_a_base_with_its_own(name, tmp_path):
    from fc_lightning.chat_template.tokens import load_tokenizer

    native_tokenizer(name).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    tokenizer, new_rows = load_tokenizer(str(tmp_path), None, tuple(SpecialToken))
    assert (new_rows, len(tokenizer)) == ({}, len(TOKENIZERS[name]))
    assert load_tokenizer(str(tmp_path), None, tuple(SpecialToken), "hermes")[1]


@NAMES
def test_what_a_native_format_does_not_do_is_told(name):
    with pytest.raises(
        ChatTemplateError, match=r"model\.tool_format: hermes" if name == "functiongemma" else "verbatim"
    ):
        ChatTemplate(native_tokenizer(name), "verbatim")
    arguments = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": json.dumps({"a": 1})}}]}]
    with pytest.raises(Exception, match="must be an object"):
        render_jinja_template([arguments], chat_template=TEMPLATES[name].source, bos_token="<bos>")
