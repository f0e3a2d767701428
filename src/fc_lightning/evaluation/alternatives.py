"""Compares calls with accepted alternatives: lists of accepted values per argument, as on the Berkeley leaderboard.

The rules are those of the Berkeley Function Calling Leaderboard (BFCL) for Python, reimplemented. A call must name the
tool, have its required arguments and no unknown ones, and give each argument one of the accepted values; ``""`` among
them says that the argument may be omitted. String comparison ignores case, spaces and ``,./-_*^``. A value must have
the type that the tool declares (an integer may replace a float, but not inside a list), or the type of the
accepted values. Parallel calls may come in any order.

Two rules differ: calls and alternatives are matched by the best assignment, where BFCL takes the first call that fits;
and a tool that is not offered, or declares no type, does not restrict types. Java and JavaScript have no separate
rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fc_lightning.conversation.types import Tool, ToolCall

_TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "number": float,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "list": list,
    "object": dict,
    "dict": dict,
    "any": str,
}
_IGNORED = str.maketrans("", "", " ,./-_*^")

AcceptedValues = Mapping[str, Sequence[Any]]  # for each argument, or key of an object


def matches_alternatives(
    calls: Sequence[ToolCall], gold: Sequence[Mapping[str, AcceptedValues]], tools: Sequence[Tool]
) -> bool:
    """Whether calls and alternatives can be paired so that each call fits its alternative.

    Args:
        calls: Predicted calls, in any order.
        gold: For each reference call ``{name: {argument: [accepted value, …]}}``.
        tools: Offered tools.

    Example:
        >>> gold = [{"weather": {"city": ["Paris", "Paris, France"], "unit": ["C", ""]}}]
        >>> matches_alternatives([ToolCall("weather", {"city": "paris"})], gold, [])
        True
        >>> matches_alternatives([ToolCall("weather", {"city": "Rome"})], gold, [])
        False
    """
    if len(calls) != len(gold):
        return False
    offered = {tool.name: tool for tool in tools}
    fits = [[_call_fits(call, alternative, offered) for alternative in gold] for call in calls]
    taken_by: dict[int, int] = {}  # the call of each taken alternative

    def assign(call: int, tried: set[int]) -> bool:
        """Find an alternative for a call, moving earlier calls if they have another one (Kuhn's algorithm)."""
        for alternative, fit in enumerate(fits[call]):
            if fit and alternative not in tried:
                tried.add(alternative)
                if alternative not in taken_by or assign(taken_by[alternative], tried):
                    taken_by[alternative] = call
                    return True
        return False

    return all(assign(call, set()) for call in range(len(calls)))


def _call_fits(call: ToolCall, alternative: Mapping[str, AcceptedValues], tools: Mapping[str, Tool]) -> bool:
    ((name, accepted),) = alternative.items()
    if call.name != name:
        return False
    properties: Mapping[str, Any] = dict.fromkeys(call.arguments)
    required: Sequence[str] = []
    if name in tools:
        properties = tools[name].parameters.get("properties") or {}
        required = tools[name].parameters.get("required") or []
    if not all(argument in call.arguments for argument in required):
        return False
    if not all(argument in call.arguments or "" in values for argument, values in accepted.items()):
        return False
    return all(
        argument in accepted and argument in properties and _value_fits(value, accepted[argument], properties[argument])
        for argument, value in call.arguments.items()
    )


def _value_fits(value: Any, accepted: Sequence[Any], schema: Any) -> bool:
    """Whether an argument has the declared type, or that of the accepted values, and is one of these."""
    accepted_type = next((type(one) for one in accepted if one != ""), None)
    declared: Any = _declared_type(schema) or accepted_type or type(value)
    if declared is float and type(value) is int:
        value = float(value)

    # 1) A value of another type than the declared one, or accepted values of another type, stand for a variable's name:
    #    they are compared as they are.
    if type(value) is not declared:
        return type(value) is accepted_type and value in accepted
    item_type = _declared_type(schema.get("items")) if declared is list and isinstance(schema, dict) else None
    if item_type is not None and not any(_items_have_type(value, one, item_type) for one in accepted):
        return False
    if accepted_type not in (None, declared):
        return value in accepted

    # 2) A value of the declared type is compared by the rules of that type.
    if declared is dict:
        return any(_object_fits(value, one) for one in accepted)
    if declared is list and item_type is dict:
        return any(_objects_fit(value, one) for one in accepted)
    if declared is list:  # "" counts as an empty list
        return _fold_items(value) in [_fold_items(one) for one in accepted if isinstance(one, list | str)]
    return _fold(value) in [_fold(one) for one in accepted]


def _items_have_type(value: Sequence[Any], accepted: Any, item_type: type) -> bool:
    """Whether all items have the declared type, or that of the accepted list's first item."""
    if not isinstance(accepted, list):
        return True
    accepted_type = next((type(one) for one in accepted if one != ""), item_type)
    return all(type(item) in (item_type, accepted_type) for item in value)


def _object_fits(value: Any, accepted: Any) -> bool:
    """Whether an object fits an accepted one, which has a list of accepted values for each key."""
    if not isinstance(value, dict) or not isinstance(accepted, dict):
        return False
    choices = {key: one if isinstance(one, list) else [one] for key, one in accepted.items()}
    if not all(key in value or "" in values for key, values in choices.items()):
        return False
    return all(key in choices and _fold(item) in map(_fold, choices[key]) for key, item in value.items())


def _objects_fit(value: Sequence[Any], accepted: Any) -> bool:
    """Whether each object of a list fits the accepted one at its place; ``""`` accepts the empty list."""
    if not isinstance(accepted, list):
        return accepted == "" and not value
    return len(value) == len(accepted) and all(map(_object_fits, value, accepted))


def _fold_items(value: Any) -> list[Any]:
    return [_fold(item) for item in value]


def _fold(value: Any) -> Any:
    """A string without case and punctuation; any other value unchanged."""
    return value.translate(_IGNORED).lower().replace("'", '"') if isinstance(value, str) else value


def _declared_type(schema: Any) -> type | None:
    name = schema.get("type") if isinstance(schema, dict) else None
    return _TYPES.get(name) if isinstance(name, str) else None
