"""The exact form of a call that servers deliver, as a regular expression.

Evaluation and the exported response template use the same pattern, so that a call counts exactly if a client receives
it. It is written for the `regex` module, whose named groups can call each other. All repetition is possessive, so that
matching takes linear time on any text.
"""

from __future__ import annotations

import regex

_SPACE = r"[ \t\n\r]*+"
# No lone surrogates: they cannot be encoded in UTF-8, so no server can send them.
_UNICODE_ESCAPE = r"u(?:[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?![dD][89a-fA-F])[0-9a-fA-F]{4})"
# A closing tag ends a call even inside of a string, because that is where vLLM's parser cuts the text. Rendering
# therefore writes it as <\/tool_call>, which is the same string in JSON.
_CHARACTER = r'(?:[^"\\\x00-\x1f<]|<(?!/tool_call>))'

JSON_GRAMMAR = (  # RFC 8259
    rf'(?(DEFINE)(?P<string>"(?:{_CHARACTER}|\\(?:["\\/bfnrt]|{_UNICODE_ESCAPE}))*+")'
    r"(?P<number>-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?)"
    r"(?P<value>(?&string)|(?&object)|(?&array)|(?&number)|true|false|null)"
    rf"(?P<array>\[{_SPACE}(?:(?&value){_SPACE}(?:,{_SPACE}(?&value){_SPACE})*+)?+\])"
    rf"(?P<member>(?&string){_SPACE}:{_SPACE}(?&value){_SPACE})"
    rf"(?P<object>\{{{_SPACE}(?:(?&member)(?:,{_SPACE}(?&member))*+)?+\}}))"
)
_NAME = rf'"name"{_SPACE}:{_SPACE}"(?P<name>{_CHARACTER}++)"'
_ARGUMENTS = rf'"arguments"{_SPACE}:{_SPACE}(?P<arguments>(?&object))'
CALL_OBJECT = (  # needs JSON_GRAMMAR in front of the complete pattern
    rf"{_SPACE}\{{{_SPACE}(?:{_NAME}{_SPACE},{_SPACE}{_ARGUMENTS}|{_ARGUMENTS}{_SPACE},{_SPACE}{_NAME}){_SPACE}\}}{_SPACE}"
)

is_call_object = regex.compile(JSON_GRAMMAR + CALL_OBJECT).fullmatch
