"""The arguments of calls in a native tool language as a grammar for xgrammar, from a tool's schema."""

from __future__ import annotations

import re
from typing import Any

from fc_lightning.conversation.native_calls import NativeSyntax
from fc_lightning.conversation.parsing import dump_json

# Keywords that the grammar does not enforce.
UNENFORCED = {"pattern", "format", "multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
UNENFORCED |= {f"{end}{what}" for end in ("min", "max") for what in ("Length", "Items", "Properties")}


def native_arguments(schema: dict[str, Any], syntax: NativeSyntax) -> str:
    """The grammar of an object that fits a schema: sorted keys, no spaces.

    Args:
        schema: The schema of a tool's arguments.
        syntax: The native language.

    Raises:
        ValueError: If the language cannot write a key, or a reference is unknown.
    """
    rules = _Rules(schema, syntax)
    return f"root ::= {rules.expression(schema)}\n" + "\n".join(rules.lines)


class _Rules:
    """Collects the rules of a schema and its parts."""

    def __init__(self, schema: dict[str, Any], syntax: NativeSyntax):
        quote = dump_json(syntax.quote)
        # A `<` inside of a string must not begin a quote or the end of the call.
        after = "".join(sorted({syntax.quote[1], syntax.call_tags[1][1]}))
        self.schema, self.syntax = schema, syntax
        self.references: dict[str, str] = {}
        self.lines = [
            f"string ::= {quote} character* {quote}",
            rf'character ::= [^<\x01\x02] | "<" [^<{after}\x01\x02]',
            'integer ::= "-"? ("0" | [1-9] [0-9]{0,30})',
            'number ::= integer ("." [0-9]+)? ([eE] [+\\-]? [0-9]{1,2})?',
            'boolean ::= "true" | "false"',
            'null ::= "null"',
            'member ::= [A-Za-z0-9_]{1,40} ":" value',
            'object ::= "{" (member ("," member)*)? "}"',
            'array ::= "[" (value ("," value)*)? "]"',
            "value ::= string | number | boolean | null | array | object",
        ]

    def add(self, expression: str) -> str:
        """Add a rule. Returns its name."""
        name = f"rule{len(self.lines)}"
        self.lines.append(f"{name} ::= {expression}")
        return name

    def expression(self, schema: Any) -> str:
        """The name of a rule, or alternatives in parentheses, for the values that fit a schema."""
        if not isinstance(schema, dict):
            return "value"
        if "$ref" in schema:
            return self._reference(schema["$ref"])
        if "const" in schema or "enum" in schema:
            values = schema.get("enum", [schema.get("const")])
            return self._any(dump_json(self.syntax.render_value(value)) for value in values)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return self._any(map(self.expression, schema[keyword]))
        implied = [kind for kind, keyword in (("object", "properties"), ("array", "items")) if keyword in schema]
        kind = schema.get("type", implied[0] if implied else "value")
        if isinstance(kind, list):
            return self._any(self.expression({**schema, "type": each}) for each in kind)
        if kind == "object" and schema.get("properties"):
            return self._object(schema["properties"], schema.get("required", ()))
        if kind == "array" and "items" in schema:
            item = self.expression(schema["items"])
            return f'("[" ({item} ("," {item})*)? "]")'
        return str(kind)

    def _any(self, expressions: Any) -> str:
        return f"({' | '.join(expressions)})"

    def _object(self, properties: dict[str, Any], required: Any) -> str:
        """Members in the order of the rendering; each rule goes on with the members after its own."""
        first = later = '""'  # what may follow if no member was written yet, or if one was
        for key, schema in sorted(properties.items(), key=lambda member: member[0].lower(), reverse=True):
            if not re.fullmatch(r"\w+", key):
                raise ValueError(f"the argument name {key!r} may only contain letters, digits and `_`")
            member = f"{dump_json(key + ':')} {self.expression(schema)} {later}"
            is_required = key in required
            first = self.add(member if is_required else f"{member} | {first}")
            later = self.add(f'"," {member}' if is_required else f'"," {member} | {later}')
        return f'("{{" {first} "}}")'

    def _reference(self, path: str) -> str:
        if path not in self.references:
            found: Any = self.schema
            for part in path.removeprefix("#").strip("/").split("/") if path != "#" else ():
                if not isinstance(found, dict) or part not in found:
                    raise ValueError(f"unknown reference {path}")
                found = found[part]
            self.references[path] = name = f"reference{len(self.references)}"
            self.lines.append(f"{name} ::= {self.expression(found)}")
        return self.references[path]
