"""Each metric against a count in plain Python, over turns whose truth is known because they were made here."""

import doctest
import importlib
import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fc_lightning.conversation.json_schema import fits_schema
from fc_lightning.conversation.types import Tool, ToolCall
from fc_lightning.evaluation.metrics import RULES, PassAtK, evaluate_turn, groups_of, tool_call_metrics

TOOLS = [Tool("f", "", {"type": "object", "properties": {"a": {"type": "integer"}}}), Tool("g", "", {"type": 7})]
GROUPS = ["calls/none", "calls/one", "calls/parallel", "calls/several", "turn/1", "turn/2", "category/x"]

# A call is a pair of a name and arguments; few values, so that calls are often the same.
call_pairs = st.tuples(
    st.sampled_from("fgh"), st.sampled_from([{}, {"a": 1}, {"a": "1"}, {"a": True}, {"a": 1, "b": 2}])
)
turns = st.fixed_dictionaries(
    {
        "thought": st.none() | st.just("Hm."),
        "answer": st.sampled_from(["", "It is noon."]),
        "calls": st.lists(call_pairs, max_size=2),
        "broken": st.sampled_from([0, 0, 0, 1]),
        "finished": st.sampled_from([True, True, True, False]),
        "turn": st.sampled_from([0, 0, 1, 5]),
        "category": st.sampled_from(["", "x"]),
    }
)
# Half of the time what is expected is what the turn says, in another order.
cases = turns.flatmap(
    lambda turn: st.tuples(st.just(turn), st.permutations(turn["calls"]) | st.lists(call_pairs, max_size=2))
)


def write(turn):
    """The turn's text, with the keys of arguments turned round."""
    parts = [] if turn["thought"] is None else [f"<think>{turn['thought']}</think>"]
    parts.append(turn["answer"])
    for name, arguments in turn["calls"]:
        arguments = dict(reversed(arguments.items()))
        parts.append(f"<tool_call>{json.dumps({'arguments': arguments, 'name': name})}</tool_call>")
    return "\n".join(parts + ["<tool_call>{'name': </tool_call>"] * turn["broken"])


def truth(turn, expected):
    """What each metric should make of a turn, by plain counting: the upper and the lower number."""

    def spell(pairs):
        return sorted(json.dumps(pair, sort_keys=True) for pair in pairs)

    def spell_arguments(pairs):
        return [json.dumps([name, item]) for name, items in pairs for item in (items.items() or [None])]

    whole = turn["finished"] and not turn["broken"]
    calling = bool(turn["calls"]) or bool(turn["broken"])
    left, common = spell_arguments(expected), 0
    for one in (predicted := spell_arguments(turn["calls"])):
        if one in left:
            left.remove(one)
            common += 1
    wanted = len(left) + common
    to_f = [arguments for name, arguments in turn["calls"] if name == "f"]
    right = whole and spell(turn["calls"]) == spell(expected)
    return {
        "exact_match": (right, 1),
        "name_match": (whole and sorted(name for name, _ in turn["calls"]) == sorted(name for name, _ in expected), 1),
        "parse_rate": (not turn["broken"], 1),
        "grammar": (turn["finished"] and calling != bool(turn["answer"]), 1),
        "overcall": (not expected and calling, not expected),
        "missed_call": (bool(expected) and not calling, bool(expected)),
        "abstention": (not expected and right, not expected),
        "unoffered": (sum(name == "h" for name, _ in turn["calls"]), len(turn["calls"])),
        # 7 is no type, so g's schema cannot be asked; to f, true and "1" are no integers.
        "arguments_valid": (sum(str(one.get("a", 1)) == "1" and one.get("a") != "1" for one in to_f), len(to_f)),
        "argument_precision": (common, len(predicted)),
        "argument_recall": (common, wanted),
        "argument_f1": (2 * common, len(predicted) + wanted),
        **dict.fromkeys(("alternatives_match", "way_match", "json_valid", "json_schema_valid", "json_equal"), (0, 0)),
    }


def groups(turn, expected):
    names = [name for name, _ in expected]
    kinds = {0: "none", 1: "one"}
    kind = kinds.get(len(names)) or ("parallel" if names[0] == names[-1] else "several")
    return {"", f"calls/{kind}", f"turn/{turn['turn'] + 1}", f"category/{turn['category']}"}


def evaluate(turn, expected):
    about = {"turn": turn["turn"], "category": turn["category"], "finished": turn["finished"], "tools": TOOLS}
    return evaluate_turn(write(turn), [ToolCall(*pair) for pair in expected], **about)


def ratio(pairs):
    pairs = list(pairs)
    total = sum(lower for _, lower in pairs)
    return sum(upper for upper, _ in pairs) / total if total else math.nan


@settings(deadline=None)
@given(st.lists(cases, max_size=6), st.integers(0, 6))
def test_metrics_are_ratios_however_the_turns_are_spread(some, cut):
    evaluated = [evaluate(*case) for case in some]
    truths = [(truth(*case), groups(*case)) for case in some]
    names = list(tool_call_metrics())
    expected = {
        name: pytest.approx(
            [ratio(one[name] for one, groups in truths if group in groups) for group in ["", *GROUPS]], nan_ok=True
        )
        for name in names
    }

    one, first, second = (tool_call_metrics(groups=GROUPS) for _ in range(3))
    one.update(evaluated)
    assert {name: value.tolist() for name, value in one.compute().items()} == expected
    alone = tool_call_metrics()
    alone.update(evaluated)
    assert {name: [value.item()] for name, value in alone.compute().items()} == {
        name: pytest.approx([ratio(one[name] for one, _ in truths)], nan_ok=True) for name in names
    }

    # Two ranks, one of them with two batches; the states are reduced as a synchronization would.
    first.update(evaluated[:cut])
    second.update([])
    second.update(evaluated[cut:])
    for name, metric in first.items():
        for state, reduce in metric._reductions.items():
            setattr(metric, state, reduce(torch.stack([getattr(metric, state), getattr(second[name], state)])))
    assert {name: value.tolist() for name, value in first.compute().items()} == expected


def test_the_groups_that_occur():
    turns = [evaluate_turn("", [], turn=turn, category=category) for turn, category in ((0, "b"), (3, ""), (9, "a"))]
    assert groups_of(turns) == ["calls/none", "category/a", "category/b", "turn/1", "turn/4+"]


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("text", "valid", "by_schema", "equal"),
    [
        ('{"n": 1}', True, True, True),
        ('<think>One.</think>{"n": 1.0}', True, True, True),
        ('{"n": true}', True, False, False),
        ('{"n": 2}', True, True, False),
        ("{'n': 1}", False, False, False),
        ("n is 1", False, False, False),
        ("[" * 100_000, False, False, False),
    ],
)
def test_json_mode(text, valid, by_schema, equal):
    turn = evaluate_turn(text, [], response_schema=SCHEMA, answer='{ "n":1 }')
    assert (turn.json_valid, turn.json_schema_valid, turn.json_equal) == (valid, by_schema, equal)
    cut = evaluate_turn(text, [], response_schema=SCHEMA, answer='{"n": 1}', finished=False)
    assert (cut.json_valid, cut.json_schema_valid, cut.json_equal) == (False, False, False)
    assert evaluate_turn(text, []).json_valid is None


@pytest.mark.parametrize(
    ("schema", "fits"),
    [
        ({"type": "dict", "properties": {"type": {"type": "float"}}}, True),  # a property may be called type
        ({"type": "object", "properties": {"type": {"type": "string"}}}, False),
        ({"properties": {"type": {"type": "any"}}}, True),
        ({"properties": {"type": {"enum": [{"type": "float"}]}}}, False),  # values stay as they are
        ({"anyOf": [{"required": ["x"]}, {"properties": {"type": {"type": "list"}}}]}, False),
        ({"$ref": "http://nowhere.invalid/schema"}, None),
        ({"type": "varchar"}, None),
        ({"properties": {"type": {"type": "string", "pattern": "("}}, "required": 3}, None),
    ],
    ids=str,
)
def test_schemas_as_tools_write_them(schema, fits):
    assert fits_schema({"type": 1.5}, schema) is fits


@given(st.lists(st.booleans(), min_size=4, max_size=4), st.integers(1, 4))
def test_pass_at_k_is_the_share_of_all_choices_with_a_right_one(rights, k):
    turns = [evaluate_turn("" if right else "<tool_call>", [], sample=n) for n, right in enumerate(rights)]
    other = [evaluate_turn("", [], id="other", sample=n) for n in range(4)]
    chosen = list(itertools.combinations(rights, k))
    expected = sum(map(any, chosen)) / len(chosen)
    metric = PassAtK(k)
    metric.update([*turns, *other])
    assert metric.compute().item() == pytest.approx((expected + 1) / 2)


@pytest.mark.parametrize(
    ("expected", "nothing_to_ask"), [([], "missed_call"), ([("f", {})], "overcall")], ids=["no call", "a call"]
)
def test_no_turn_to_ask_is_no_ratio(expected, nothing_to_ask):
    metrics = tool_call_metrics("val/")
    metrics.update([evaluate_turn("Hello.", [ToolCall(*pair) for pair in expected])])
    values = metrics.compute()
    assert {name for name in ("val/overcall", "val/missed_call") if values[name].isnan()} == {f"val/{nothing_to_ask}"}
    metrics.reset()
    assert all(metric.denominator == 0 for metric in metrics.values())


def test_a_turn_keeps_what_it_was_made_of():
    text = '<think>t</think><tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    turn = evaluate_turn(text, [ToolCall("f", {"a": 2})], id="x", turn=1, category="single", prompt="p", tools=TOOLS)
    kept = json.loads(json.dumps(turn.to_dict()))
    assert kept["expected"] == [{"name": "f", "arguments": {"a": 2}}]
    assert kept["predicted"] == [{"name": "f", "arguments": {"a": 1}}]
    assert [kept[name] for name in ("id", "turn", "category", "prompt", "text")] == ["x", 1, "single", "p", text]
    assert [kept[name] for name in ("finished", "exact_match", "name_match", "parsed", "grammar")] == [
        *(True, False, True, True, True)
    ]
    assert [kept[name] for name in ("unoffered", "checked", "valid", "json_valid")] == [0, 1, 1, None]


@pytest.mark.parametrize(
    "name",
    [
        "conversation.parsing",
        "conversation.json_schema",
        "data.packing",
        *(f"evaluation.{name}" for name in ("turns", "metrics", "alternatives", "significance", "kv_cache")),
    ],
)
def test_examples_in_docstrings(name):
    results = doctest.testmod(importlib.import_module(f"fc_lightning.{name}"))
    assert results.attempted > 0
    assert results.failed == 0


def test_directions_of_metrics():
    lower = {name for name, metric in tool_call_metrics().items() if not metric.higher_is_better}
    assert lower == {"unoffered", "overcall", "missed_call"}
    assert all(rule.description for rule in RULES.values())


def test_a_schema_that_refers_to_an_address_fetches_nothing(monkeypatch):
    asked = []
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: asked.append(args))
    assert fits_schema({"n": 1}, {"$ref": "http://localhost:9/schema.json"}) is None
    assert not asked
