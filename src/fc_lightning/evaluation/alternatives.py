"""Calls against alternatives: for each call the accepted values of each argument, as the Berkeley leaderboard has it.

The rules are those of the Berkeley Function Calling Leaderboard (BFCL) for Python, written anew: a call must name the
tool, have its required arguments and no unknown ones, and give each argument one of the accepted values; ``""`` among
them says that the argument may be left out. Strings are compared without case, spaces and ``,./-_*^``. A value must
have the type that the tool declares (an integer may stand for a float, but not inside a list), or the type of the
accepted values. Parallel calls may come in any order.

What differs: calls and alternatives are matched as well as possible, where BFCL takes the first call that fits; a tool
that is not offered, or declares no type, puts no condition on types; Java and JavaScript have no rules of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fc_lightning.conversation.types import Tool, ToolCall

_TYPES: dict[str, type] = {
    **{"string": str, "integer": int, "number": float, "float": float, "boolean": bool},
    **{"array": list, "tuple": list, "list": list, "object": dict, "dict": dict, "any": str},
}
_IGNORED = str.maketrans("", "", " ,./-_*^")

Accepted = Mapping[str, Sequence[Any]]


def matches_alternatives(
    calls: Sequence[ToolCall], gold: Sequence[Mapping[str, Accepted]], tools: Sequence[Tool]
) -> bool:
    """Whether each call fits an alternative of its own, and no alternative is left.

    Args:
        calls: What was called, in any order.
        gold: One ``{name: {argument: [accepted, …]}}`` for each call.
        tools: The tools on offer.

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
    fits = [[_call_fits(call, one, offered) for one in gold] for call in calls]
    taken_by: dict[int, int] = {}

    def place(call: int, tried: set[int]) -> bool:
        """Find an alternative for a call; others may have to move (Kuhn's algorithm)."""
        for one, fit in enumerate(fits[call]):
            if fit and one not in tried:
                tried.add(one)
                if one not in taken_by or place(taken_by[one], tried):
                    taken_by[one] = call
                    return True
        return False

    return all(place(call, set()) for call in range(len(calls)))


def _call_fits(call: ToolCall, gold: Mapping[str, Accepted], tools: Mapping[str, Tool]) -> bool:
    ((name, accepted),) = gold.items()
    if call.name != name:
        return False
    tool = tools.get(name)
    properties = tool.parameters.get("properties") or {} if tool else {key: {} for key in call.arguments}
    required = tool.parameters.get("required") or [] if tool else []
    return (
        all(argument in call.arguments for argument in required)
        and all(argument in accepted and argument in properties for argument in call.arguments)
        and all(_value_fits(value, accepted[key], properties[key]) for key, value in call.arguments.items())
        and all(argument in call.arguments or "" in values for argument, values in accepted.items())
    )


def _value_fits(value: Any, accepted: Sequence[Any], schema: Any) -> bool:
    declared: Any = _type(schema)
    if declared is float and type(value) is int:
        value = float(value)
    given = next((type(one) for one in accepted if one != ""), None)
    declared = declared or given or type(value)
    item = _type(schema.get("items")) if declared is list else None
    kind: Any = type(value)
    if kind is not declared:
        return kind is given and value in accepted
    if item is not None and not any(_items_fit(value, one, item) for one in accepted):
        return False
    if given not in (None, declared):
        return value in accepted
    if declared is dict:
        return any(_object_fits(value, one) for one in accepted if one != "")
    if declared is list and item is dict:
        return any(_objects_fit(value, one) for one in accepted)
    if declared is list:
        return _folded_items(value) in [_folded_items(one) for one in accepted]
    return _folded(value) in [_folded(one) for one in accepted]


def _items_fit(value: Sequence[Any], accepted: Any, item: type) -> bool:
    """Whether the items have the declared type, or that of the accepted list's first one."""
    if not isinstance(accepted, list):
        return True
    given = next((type(one) for one in accepted if one != ""), item)
    return all(type(one) in (item, given) for one in value)


def _object_fits(value: Mapping[str, Any], accepted: Mapping[str, Sequence[Any]]) -> bool:
    """Objects are written as calls are: for each key the accepted values."""
    return all(
        key in accepted and _folded(one) in [_folded(other) for other in accepted[key]] for key, one in value.items()
    ) and all(key in value or "" in values for key, values in accepted.items())


def _objects_fit(value: Sequence[Any], accepted: Sequence[Any]) -> bool:
    """Lists of objects: equally many, each against the one at its place."""
    if len(value) != len(accepted):
        return False
    pairs = zip(value, accepted, strict=True)
    return all(isinstance(one, dict) and isinstance(other, dict) and _object_fits(one, other) for one, other in pairs)


def _folded_items(value: Any) -> list[Any]:
    """A list with its strings folded; what may be left out is as good as an empty list."""
    return [_folded(one) for one in value]


def _folded(value: Any) -> Any:
    """A string as it is compared; any other value as it is."""
    return value.translate(_IGNORED).lower().replace("'", '"') if isinstance(value, str) else value


def _type(schema: Any) -> type | None:
    name = schema.get("type") if isinstance(schema, dict) else None
    return _TYPES.get(name) if isinstance(name, str) else None
