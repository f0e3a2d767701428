"""JSON schemas against jsonschema itself, and patterns that would take exponential time."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from fc_lightning.conversation.json_schema import PatternError, fits_schema, schema_validator

patterns = st.sampled_from(["^a", "b$", "^x-", ".", r"^\d+$", "^(?!a)", "[a-c]{2}"])
names = st.text("abx-1", max_size=3)
schemas = st.recursive(
    st.sampled_from([{}, {"type": "integer"}, {"type": "string"}, True, False]) | st.builds(dict, pattern=patterns),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "type": st.just("object"),
            "properties": st.dictionaries(names, inner, max_size=2),
            "patternProperties": st.dictionaries(patterns, inner, max_size=2),
            "additionalProperties": inner,
            "items": inner,
        },
    ),
    max_leaves=6,
)
values = st.recursive(
    st.integers(0, 2) | names, lambda inner: st.dictionaries(names, inner, max_size=3) | st.lists(inner, max_size=2)
)


@settings(max_examples=300, deadline=None)
@given(schemas, values)
def test_a_value_is_valid_exactly_if_it_is_for_jsonschema(schema, value):
    assert fits_schema(value, schema) == Draft202012Validator(schema).is_valid(value)


HOSTILE = "a" * 60 + "!"


# Each would take Python's `re` years. The `regex` module decides most of them at once; None is its time limit.
@pytest.mark.parametrize(
    ("schema", "value", "valid"),
    [
        ({"pattern": "^(a+)+$"}, HOSTILE, False),
        ({"pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}, HOSTILE, False),
        ({"patternProperties": {"^(a*)*$": False}}, {HOSTILE: 1}, True),
        ({"pattern": "^(a|aa)+$"}, HOSTILE, None),
        ({"patternProperties": {"^(a|aa)+b$": {}}, "additionalProperties": False}, {HOSTILE: 1}, None),
        ({"propertyNames": {"pattern": "^(a|aa)+c$"}}, {HOSTILE: 1}, None),
        ({"items": {"pattern": "^(a|aa)+d$"}}, [f"{HOSTILE}{number}" for number in range(1000)], None),
    ],
)
def test_patterns_are_bounded_in_time(schema, value, valid):
    start = time.monotonic()
    assert fits_schema(value, schema) is valid
    if valid is None:
        with pytest.raises(PatternError, match="takes too long"):
            list(schema_validator(json.dumps(schema)).iter_errors(value))
    assert time.monotonic() - start < 10


def test_schemas_that_cannot_be_checked():
    assert fits_schema("a", {"pattern": "("}) is None
    assert fits_schema({}, {"patternProperties": {"a": {}}, "unevaluatedProperties": False}) is None
    assert fits_schema({}, {"$ref": "https://example.com/schema.json"}) is None
