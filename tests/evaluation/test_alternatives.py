"""Calls against BFCL's alternatives: 2,000 predictions judged by a second, independent reading of the rules.

The second reading writes down, for each argument, everything that may stand there as a set of spelled-out values, and
tries all orders of parallel calls; the package compares values one by one and looks for a matching.
"""

import itertools
import random
import re
from collections import Counter

import pytest

from fc_lightning.conversation.types import Tool, ToolCall
from fc_lightning.evaluation.alternatives import matches_alternatives

WORDS = ["Paris", "New York", "next-day", "a.b/c", "x_1", "CEO's", "", "7"]
SCALARS = ["string", "integer", "float", "boolean"]
ARRAYS = ["string", "integer", "float", "dict"]


def scalar(rng, kind):
    if kind == "string":
        return rng.choice(WORDS[:-2])
    if kind == "integer":
        return rng.randrange(5)
    return rng.choice([0.5, 1.0, 2.25, 3.0]) if kind == "float" else rng.random() < 0.5


def accepted_object(rng):
    """An accepted object: for each key the accepted values."""
    out = {key: [scalar(rng, "string"), scalar(rng, "string")] for key in rng.sample("pqr", 2)}
    out["n"] = [rng.randrange(3), *([""] if rng.random() < 0.5 else [])]
    return out


def parameter(rng):
    """A declared parameter and one value that it accepts, as BFCL writes both."""
    roll = rng.random()
    if roll < 0.6:
        kind = rng.choice(SCALARS)
        value = scalar(rng, kind)
        value = int(value) if kind == "float" and rng.random() < 0.2 else value
        value = "a_variable" if kind != "string" and rng.random() < 0.1 else value
        return {"type": kind}, value
    if roll < 0.7:
        return {"type": "dict"}, accepted_object(rng)
    item = rng.choice(ARRAYS)
    make = accepted_object if item == "dict" else lambda rng: scalar(rng, item)
    return {"type": "array", "items": {"type": item}}, [make(rng) for _ in range(rng.randrange(1, 4))]


def row(rng):
    """Tools and alternatives of one row: one call, or several of the same or of other tools."""
    tools, gold = {}, []
    for _ in range(rng.choice([1, 1, 2, 3])):
        name = rng.choice("fgh")
        if name not in tools:
            properties = {key: parameter(rng) for key in rng.sample("abcd", rng.randrange(1, 5))}
            required = [key for key in properties if rng.random() < 0.6]
            tools[name] = (properties, required)
        properties, required = tools[name]
        accepted = {}
        for key, (schema, value) in properties.items():
            others = [parameter(rng)[1] for _ in range(40)]
            others = [other for other in others if type(other) is type(value)][: rng.randrange(2)]
            if schema["type"] == "array":  # as in BFCL, all lists have the declared kind of items
                others = [value[:1]] if others else []
            accepted[key] = [value, *others, *([""] if key not in required or rng.random() < 0.1 else [])]
        gold.append({name: accepted})
    declared = [
        Tool(name, "", {"properties": {key: schema for key, (schema, _) in properties.items()}, "required": required})
        for name, (properties, required) in tools.items()
    ]
    return declared, gold


def choose(rng, value):
    """A value that fits an accepted one: accepted objects hold lists to choose from."""
    if isinstance(value, dict):
        chosen = {key: rng.choice(values) for key, values in value.items()}
        return {key: one for key, one in chosen.items() if not (one == "" and key == "n")}
    return [choose(rng, item) for item in value] if isinstance(value, list) else value


def restyle(value):
    """The same string to BFCL, or nearly: another case, other punctuation."""
    if isinstance(value, str):
        return value.upper().replace(" ", "_") + "."
    return [restyle(item) for item in value] if isinstance(value, list) else value


def predict(rng, tools, gold):  # noqa: C901 - one branch per change
    """Calls that fit, changed in one way: what was done to them, and the calls."""
    calls = []
    for one in gold:
        ((name, accepted),) = one.items()
        arguments = {key: choose(rng, rng.choice(values)) for key, values in accepted.items()}
        for key, values in accepted.items():
            if "" in values and (arguments[key] == "" or rng.random() < 0.3):
                del arguments[key]
        calls.append((name, arguments))
    changes = [
        "true",
        "reordered",
        "extra call",
        "call missing",
        "one wrong",
        "left out",
        "wrong type",
        "int for float",
    ]
    change = rng.choice([*changes, "restyled", "unknown argument", "other tool", "empty", "other number"])
    name, arguments = rng.choice(calls)
    key = rng.choice(sorted(arguments)) if arguments else None
    if change == "reordered":
        rng.shuffle(calls)
    elif change == "extra call":
        calls.append(rng.choice(calls))
    elif change == "call missing":
        calls.pop()
    elif change == "unknown argument":
        arguments["z"] = 1
    elif change == "other tool":
        calls = [("k", arguments) if one[1] is arguments else one for one in calls]
    elif key is not None:
        value = arguments[key]
        if change == "one wrong":
            arguments[key] = parameter(rng)[1]
        elif change == "left out":
            del arguments[key]
        elif change == "wrong type":
            arguments[key] = str(value) if not isinstance(value, str) else [value]
        elif change == "restyled":
            arguments[key] = restyle(value)
        elif change == "empty":
            arguments[key] = rng.choice(["", [], {}, None, False, 0])
        elif change == "int for float":
            arguments[key] = int(value) if isinstance(value, float) else value
        elif change == "other number":
            arguments[key] = value + 1 if isinstance(value, int | float) else value
    return change, [ToolCall(*call) for call in calls]


def spell(value):
    """A value spelled out with its type; strings as BFCL compares them."""
    if isinstance(value, str):
        return "s:" + re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"')
    if isinstance(value, list):
        return "[" + ";".join(map(spell, value)) + "]"
    if isinstance(value, dict):
        return "{" + ";".join(f"{key}={spell(value[key])}" for key in sorted(value)) + "}"
    return f"{type(value).__name__}:{value}"


def spellings(value):
    """All that may be written for an accepted value."""
    if isinstance(value, dict):
        choices = [
            [f"{key}={spell(one)}" for one in values] + ([None] if "" in values else [])
            for key, values in sorted(value.items())
        ]
        return {"{" + ";".join(filter(None, combination)) + "}" for combination in itertools.product(*choices)}
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return {"[" + ";".join(combination) + "]" for combination in itertools.product(*map(spellings, value))}
    return {spell(value)}


def possible(schema, values):
    """Everything that may stand for an argument, spelled out; None if it may be left out."""
    kind = schema["type"]
    out = {None} if "" in values else set()
    variable = isinstance(values[0], str) and kind != "string"
    for value in values:
        if value == "" and kind == "array" and not variable:
            out.add("[]")  # BFCL takes an empty list for one that was left out
        elif kind == "float" and type(value) is int:
            out |= {f"float:{float(value)}"}
        elif variable:
            out.add("exactly:" + value)
        elif value != "" or kind == "string":
            out |= spellings(value)
    return out


def judge(calls, gold, tools):
    """The second reading of the rules."""
    properties = {tool.name: tool.parameters["properties"] for tool in tools}
    required = {tool.name: tool.parameters["required"] for tool in tools}

    def fits(call, one):
        ((name, accepted),) = one.items()
        if call.name != name or set(call.arguments) - set(accepted) or set(required[name]) - set(call.arguments):
            return False
        for key, values in accepted.items():
            may = possible(properties[name][key], values)
            value = call.arguments.get(key)
            if key not in call.arguments:
                written = {None}
            elif properties[name][key]["type"] == "float" and type(value) is int:
                written = {f"float:{float(value)}"}
            else:
                written = {spell(value), "exactly:" + value if isinstance(value, str) else "…"}
            if not may & written:
                return False
        return True

    return any(len(calls) == len(gold) and all(map(fits, calls, order)) for order in itertools.permutations(gold))


def cases(number, seed=0):
    for n in range(number):
        rng = random.Random(f"{seed}/{n}")
        tools, gold = row(rng)
        yield tools, gold, *predict(rng, tools, gold)


def test_agreement_on_2000_predictions():
    outcomes = Counter()
    for tools, gold, change, calls in cases(2000):
        expected = judge(calls, gold, tools)
        assert matches_alternatives(calls, gold, tools) == expected, (tools, gold, change, calls)
        outcomes[change, expected] += 1
    # Each kind of change occurs often, and both outcomes do.
    assert all(sum(outcomes[change, outcome] for outcome in (True, False)) > 80 for change, _ in outcomes)
    assert (
        min(sum(count for (_, right), count in outcomes.items() if right == outcome) for outcome in (True, False)) > 500
    )
    assert outcomes["extra call", True] == outcomes["other tool", True] == 0
    # A true call is wrong only where BFCL contradicts itself: an argument that is required and may be left out.
    assert outcomes["true", True] > 4 * outcomes["true", False]


TOOL = Tool("f", "", {"properties": {"x": {"type": "float"}, "y": {"type": "array"}}, "required": ["x"]})


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ({"x": 5.0}, True),
        ({"x": 5}, True),  # an integer may stand for a float
        ({"x": "5"}, False),
        ({"x": True}, False),
        ({"x": 5.0, "y": ["A b"]}, True),
        ({"x": 5.0, "y": ["ab"]}, True),
        ({"x": 5.0, "y": []}, True),  # as good as left out
        ({"x": 5.0, "y": "ab"}, False),
        ({"y": ["ab"]}, False),
        ({"x": 5.0, "z": 1}, False),
    ],
    ids=str,
)
def test_the_rules_by_hand(arguments, right):
    gold = [{"f": {"x": [5.0, 6.0], "y": [["a-B"], ""]}}]
    assert matches_alternatives([ToolCall("f", arguments)], gold, [TOOL]) == right


def test_calls_are_matched_as_well_as_possible():
    """BFCL gives the first alternative the first call that fits, and then has none for the second: it says no."""
    gold = [{"f": {"a": ["x", "y"]}}, {"f": {"a": ["x"]}}]
    assert matches_alternatives([ToolCall("f", {"a": "x"}), ToolCall("f", {"a": "y"})], gold, [])
    assert not matches_alternatives([ToolCall("f", {"a": "y"}), ToolCall("f", {"a": "y"})], gold, [])


@pytest.mark.parametrize(
    ("accepted", "right"),
    [([[1, 2], 3], True), ([3, [1]], False), ([{"k": 1}, [1, 2]], True), (["", 3], False)],
    ids=str,
)
def test_alternatives_of_several_types(accepted, right):
    tool = Tool("f", "", {"properties": {"y": {"type": "array", "items": {"type": "integer"}}}})
    assert matches_alternatives([ToolCall("f", {"y": [1, 2]})], [{"f": {"y": accepted}}], [tool]) == right


@pytest.mark.parametrize("accepted", [3, "x", [3], {"k": 1}], ids=str)
def test_objects_against_alternatives_that_are_no_objects(accepted):
    for items in ({}, {"type": "object"}):
        tool = Tool("f", "", {"properties": {"y": {"type": "array", "items": items}, "z": {"type": "object"}}})
        calls = [ToolCall("f", {"y": [{"k": 2}], "z": {"k": 2}})]
        assert not matches_alternatives(calls, [{"f": {"y": [accepted, [accepted]], "z": [accepted]}}], [tool])
