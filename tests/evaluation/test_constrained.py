"""Constrained decoding: whatever the model prefers, turns can be parsed, end in time and have valid arguments."""

import itertools
import json
import warnings

import pytest
import torch
from tests.helpers.native_conversations import SYNTAXES, native_tokenizer
from transformers import AutoModelForCausalLM

from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer
from fc_lightning.conversation.json_schema import fits_schema
from fc_lightning.conversation.parsing import parse_turn
from fc_lightning.conversation.types import Message, Tool, ToolCall
from fc_lightning.evaluation.constrained import CallGrammars
from fc_lightning.evaluation.generation import NO_LIMITS, generate
from fc_lightning.evaluation.grammar_schema import arguments_schema, unenforced_keywords

xgrammar = pytest.importorskip("xgrammar")

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome", "Bern"]}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}


def test_constrained_turns_are_grammatical_and_their_calls_valid():
    """Any tokens that are allowed, drawn at random: every turn that ends can be read, and its calls are valid."""

    tokenizer, _ = load_tokenizer("tests/models/tiny_gemma2", None, tuple(SpecialToken))
    generator = torch.Generator().manual_seed(0)
    opening = tokenizer.convert_tokens_to_ids("<tool_call>")
    grammars = CallGrammars(tokenizer, len(tokenizer) + 3, [1])  # a model's matrix may have rows to spare
    weather = [Tool("weather", "", SCHEMA), Tool("clock")]
    constraint = grammars.constrain([weather] * 12 + [[]] * 2, 10_000)
    ids = torch.full((14, 5), 7)
    constraint.set_rows(range(14))
    for step in range(150):
        scores = torch.randn(14, len(tokenizer) + 3, generator=generator)
        scores[:, opening] += 20.0 if step < 3 else 0.0  # so that there are calls
        scores[:, 1] += 3.0
        allowed = constraint(ids, scores)
        ids = torch.cat([ids, allowed.argmax(-1, keepdim=True)], 1)
    texts = [tokenizer.decode(row[5 : row.index(1, 5)]) for row in ids.tolist() if 1 in row[5:]]
    turns = [parse_turn(text) for text in texts]
    calls = [call for turn in turns for call in turn.tool_calls]
    assert len(turns) > 10
    assert all(turn.grammatical and not turn.errors for turn in turns)
    assert {call.name for call in calls} == {"weather", "clock"}
    assert all(fits_schema(call.arguments, SCHEMA) for call in calls if call.name == "weather")
    assert not turns[-1].tool_calls  # no tools, no calls


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.0}], ids=["ours", "transformers"])
def test_each_row_keeps_to_its_own_grammar_whatever_is_generated_at_once(settings):
    tokenizer, _ = load_tokenizer("tests/models/tiny_gemma2", None, tuple(SpecialToken))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained("tests/models/tiny_gemma2").eval()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    grammars = CallGrammars(tokenizer, len(tokenizer), [1])
    tools = [[Tool(f"tool_{number}", "", SCHEMA)] if number % 3 else [] for number in range(5)]
    prompts = [[2, *range(5, 8 + 4 * number)] for number in range(5)]
    settings = {"max_new_tokens": 60, "do_sample": False, **settings}
    alone, *together = (
        generate(model, prompts, settings, [1], 0, grammars.constrain(tools, 60), limits=limits)
        for limits in ((10**6, 1), (10**6, 2), NO_LIMITS)
    )
    assert together == [alone] * 2
    assert all(finished for _, finished in alone)
    turns = [parse_turn(tokenizer.decode(ids)) for ids, _ in alone]
    assert all(turn.grammatical and not turn.errors for turn in turns)
    called = [{call.name for call in turn.tool_calls} for turn in turns]
    assert all(names <= {tool.name for tool in tools[number]} for number, names in enumerate(called))


ENDLESS = {
    "type": "object",
    "properties": {
        "numbers": {"type": "array", "items": {"type": "integer"}},
        "nested": {"$ref": "#/$defs/node"},
        "note": {"type": "string"},
        "kind": {"enum": ["first", "second"]},
    },
    "required": ["numbers", "note", "kind"],
    "$defs": {"node": {"type": "object", "properties": {"children": {"items": {"$ref": "#/$defs/node"}}}}},
}


@pytest.mark.parametrize("begin", ["", "<think>\n", '<tool_call>\n{"name": "f", "arguments": {"numbers": ['])
def test_a_constrained_turn_comes_to_its_end_before_its_tokens_do(begin):
    """Tokens at random, of which none would end a string, a list, a number or a thought by itself."""

    tokenizer, _ = load_tokenizer("tests/models/tiny_gemma2", None, tuple(SpecialToken))
    limit, rows = 300, 8
    constraint = CallGrammars(tokenizer, len(tokenizer), [1]).constrain([[Tool("f", "", ENDLESS)]] * rows, limit)
    begun = tokenizer.encode(begin, add_special_tokens=False)
    generator = torch.Generator().manual_seed(0)
    closing = [number for number in range(len(tokenizer)) if set(tokenizer.decode([number])) & set('"]}\n>')]
    ids = torch.full((rows, 1), 7)
    for step in range(limit):
        scores = torch.randn(rows, len(tokenizer), generator=generator)
        scores[:, [1, *closing]] -= 20.0
        if step < len(begun):
            scores[:, begun[step]] += 100.0
        ids = torch.cat([ids, constraint(ids, scores).argmax(-1, keepdim=True)], 1)
    for row in ids.tolist():
        assert 1 in row
        text = tokenizer.decode(row[1 : row.index(1)])
        turn = parse_turn(text)
        assert text.startswith(begin)
        assert turn.grammatical
        assert not turn.errors
        assert all(fits_schema(call.arguments, ENDLESS) for call in turn.tool_calls)
        assert bool(turn.tool_calls) or "tool_call" not in begin


@pytest.mark.parametrize("begin", ["", "call"])
@pytest.mark.parametrize("name", ["functiongemma", "gemma4"])
def test_native_turns_are_grammatical_valid_and_come_to_an_end(name, begin):
    """Tokens at random, of which none would end a turn or a string by itself."""

    tokenizer, syntax, limit, rows = native_tokenizer(name), SYNTAXES[name], 240, 12
    end = ChatTemplate.end_ids(tokenizer, syntax)
    tools = [Tool("weather", "", SCHEMA), Tool("f", "", ENDLESS), Tool("clock")]
    constraint = CallGrammars(tokenizer, len(tokenizer) + 3, end, syntax).constrain([tools] * rows, limit)
    generator = torch.Generator().manual_seed(0)
    opening, quote = tokenizer.convert_tokens_to_ids([syntax.call_tags[0], syntax.quote])
    ids = torch.full((rows, 1), 7)
    for step in range(limit):
        scores = torch.randn(rows, len(tokenizer) + 3, generator=generator)
        scores[:, [*end, quote]] -= 5.0
        scores[:, opening] += 100.0 if begin and step == 0 else -5.0
        ids = torch.cat([ids, constraint(ids, scores).argmax(-1, keepdim=True)], 1)
    found = set()
    for row in ids.tolist():
        last = next(place for place, token in enumerate(row) if token in end)
        turn = syntax.parse_turn(tokenizer.decode(row[1:last]))
        assert turn.grammatical
        assert not turn.errors
        assert bool(turn.tool_calls) or not begin
        schemas = {tool.name: arguments_schema(tool.parameters) for tool in tools}
        assert all(fits_schema(call.arguments, schemas[call.name]) for call in turn.tool_calls)
        assert all(list(call.arguments) == sorted(call.arguments) for call in turn.tool_calls if call.name != "clock")
        found |= {call.name for call in turn.tool_calls}
    assert not begin or found == {"weather", "f", "clock"}


def test_a_native_grammar_takes_and_refuses_what_its_schema_does():
    syntax, tokenizer = SYNTAXES["gemma4"], native_tokenizer("gemma4")
    properties = {"b": {"type": ["integer", "null"]}, "a": {"enum": ["x", 2]}, "c": {"items": {"type": "boolean"}}}
    properties["c"]["type"] = "array"
    schema = {"type": "object", "properties": properties, "required": ["b"]}
    compiled = CallGrammars(tokenizer, len(tokenizer), [1], syntax)._compile([Tool("f", "", schema)])
    for arguments in (
        {"b": 1},
        {"b": None},
        {"a": "x", "b": -3, "c": [True, False]},
        {"b": 1, "c": []},
        {},
        {"b": 1.5},
        {"a": "y", "b": 1},
        {"b": 1, "c": [1]},
        {"b": 1, "d": 1},
        {"a": 2},
    ):
        text = syntax.render_turn(Message("assistant", tool_calls=(ToolCall("f", arguments),)))
        matcher = xgrammar.GrammarMatcher(compiled)
        valid = bool(fits_schema(arguments, schema)) and not arguments.keys() - properties.keys()
        assert all(map(matcher.accept_token, tokenizer.encode(text, add_special_tokens=False))) == valid, arguments


def test_a_schema_that_cannot_be_used_is_reported():
    tokenizer, _ = load_tokenizer("tests/models/tiny_gemma2", None, tuple(SpecialToken))
    grammars = CallGrammars(tokenizer, len(tokenizer), [1])
    with pytest.warns(UserWarning, match="the arguments of f are not constrained"):
        grammars.constrain([[Tool("f", "", {"properties": {"a": {"type": "varchar"}}})]], 100)


def accepts(schema, value):
    """Whether xgrammar's grammar of a schema has the value, written as JSON, one character a token."""
    vocabulary = [chr(code) for code in range(32, 127)] + ["</s>"]
    info = xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[len(vocabulary) - 1])
    compiled = xgrammar.GrammarCompiler(info).compile_json_schema(json.dumps(schema))
    matcher = xgrammar.GrammarMatcher(compiled)
    return matcher.accept_string(json.dumps(value)) and matcher.accept_token(len(vocabulary) - 1)


INTEGERS = {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
VALUES = [{}, {"a": 1}, {"b": 2}, {"a": 1, "b": 2}, {"a": 3}, {"a": "x"}, {"a": [1, 1]}, {"a": [1, 2]}, {"a": None}]


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "array", "items": {"type": "integer"}},
        {"type": "null"},
        {"required": ["a"]},
        {"properties": {"b": {"type": "integer"}}, "required": ["a"]},
        {"properties": {"a": {"type": "integer", "enum": [1, "x"]}}},
        {"properties": {"a": {"type": ["integer", "null"]}}},
        {"properties": {"a": {"type": "integer", "not": {"const": 3}}}},
        {"properties": {"a": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}}},
        {"properties": {"a": {"type": "array", "items": {"type": "integer"}, "contains": {"const": 2}}}},
        {"properties": {"a": {"allOf": [{"type": "integer"}, {"minimum": 2}]}}},
        {"properties": {"a": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}},
        {"properties": {"a": {"type": "integer", "anyOf": [{"minimum": 3}, {"maximum": 0}]}}},
        {**INTEGERS, "if": {"required": ["a"]}, "then": {"required": ["b"]}},
        {**INTEGERS, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {**INTEGERS, "dependentRequired": {"a": ["b"]}},
        {"properties": {"a": {"$ref": "#/$defs/n", "minimum": 2}}, "$defs": {"n": {"type": "integer"}}},
    ],
    ids=str,
)
def test_what_is_not_enforced_is_named(parameters):
    """A value that the schema of a tool rejects is rejected in decoding too, or the keyword is named."""
    schema = arguments_schema(parameters)
    wrong = [
        value for value in VALUES if accepts(schema, value) and not fits_schema(value, {**parameters, "type": "object"})
    ]
    assert bool(wrong) == bool(unenforced_keywords(schema))
    assert any(accepts(schema, value) for value in VALUES)


def test_keywords_that_are_not_enforced_are_reported_once():
    tokenizer, _ = load_tokenizer("tests/models/tiny_gemma2", None, tuple(SpecialToken))
    grammars = CallGrammars(tokenizer, len(tokenizer), [1])
    unique = {"properties": {"a": {"type": "array", "uniqueItems": True}}}
    with pytest.warns(UserWarning, match="does not enforce `uniqueItems` .in the schema of f"):
        grammars.constrain([[Tool("f", "", unique)]], 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grammars.constrain(
            [[Tool("g", "", unique)], [Tool("h", "", {"properties": {"a": {"uniqueItems": False}}})]], 100
        )


@pytest.mark.parametrize("parameters", [{"type": "array"}, {"type": "null"}, {"required": ["a", "b"]}], ids=str)
def test_calls_can_be_parsed_whatever_type_a_tool_declares(parameters):
    tokenizer, _ = load_tokenizer("tests/models/tiny_gemma2", None, tuple(SpecialToken))
    constraint = CallGrammars(tokenizer, len(tokenizer), [1]).constrain([[Tool("f", "", parameters)]] * 4, 200)
    begun = tokenizer.encode('<tool_call>\n{"name": "f", "arguments": ', add_special_tokens=False)
    # 1e999 is valid JSON and has no value; a model does not write it.
    exponents = [number for number in range(len(tokenizer)) if "e" in tokenizer.decode([number]).lower()]
    generator, ids = torch.Generator().manual_seed(0), torch.full((4, 1), 7)
    for token in itertools.chain(begun, [None] * (200 - len(begun))):
        scores = torch.randn(4, len(tokenizer), generator=generator)
        scores[:, exponents] -= 20.0
        if token is not None:
            scores[:, token] += 100.0
        ids = torch.cat([ids, constraint(ids, scores).argmax(-1, keepdim=True)], 1)
    for row in ids.tolist():
        turn = parse_turn(tokenizer.decode(row[1 : row.index(1)]))
        assert not turn.errors
        assert len(turn.tool_calls) >= 1
        assert all(call.arguments.keys() >= set(parameters.get("required", ())) for call in turn.tool_calls)
