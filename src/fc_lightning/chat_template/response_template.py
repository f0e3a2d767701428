"""The response template: how a server takes a model turn apart into thinking, calls and answer.

transformers' parser (``tokenizer.parse_response``, ``transformers serve``) opens a region where one pattern matches
and closes it where another does. Closing a call at the first ``</tool_call>`` would cut it where an argument holds that
text, and a call that is no JSON would end the whole request with an error. So a call opens only where a whole one
stands, read by a grammar of JSON; any other text is content, and the client sees it.
"""

from __future__ import annotations

import re
from typing import Any

from fc_lightning.chat_template.tool_formats import CHAT_FORMATS, ChatFormat

# JSON (RFC 8259) in the dialect of the module `regex`: named groups that call each other.
_JSON = (
    r'(?(DEFINE)(?P<string>"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+")'
    r"(?P<number>-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?)"
    r"(?P<value>(?&string)|(?&object)|(?&array)|(?&number)|true|false|null)"
    r"(?P<array>\[\s*+(?:(?&value)\s*+(?:,\s*+(?&value)\s*+)*+)?+\])"
    r"(?P<member>(?&string)\s*+:\s*+(?&value)\s*+)"
    r"(?P<object>\{\s*+(?:(?&member)(?:,\s*+(?&member))*+)?+\}))"
)
_NAME = r'"name"\s*+:\s*+"(?P<name>[^"\\\x00-\x1f]++)"'
_ARGUMENTS = r'"arguments"\s*+:\s*+(?P<arguments>(?&object))'
_CALL = rf"\{{\s*+(?:{_NAME}\s*+,\s*+{_ARGUMENTS}|{_ARGUMENTS}\s*+,\s*+{_NAME})\s*+\}}"


def response_template(chat_format: ChatFormat = CHAT_FORMATS[0], eos_token: str = "<eos>") -> dict[str, Any]:
    """The template that reads what the canonical chat template writes, for ``tokenizer.response_template``.

    ``reasoning_content`` is a think block that opens the turn; ``tool_calls`` are its calls in OpenAI's shape, with the
    arguments as the text that the model wrote; ``content`` is everything else. Streamed or not, the parts are the same.

    Args:
        chat_format: How turns are marked; Gemma's way if not given.
        eos_token: What ends a text.
    """
    ends = "|".join(dict.fromkeys(map(re.escape, (chat_format.turn_end, eos_token))))
    return {
        "version": 1,
        "defaults": {"role": "assistant"},
        "start_anchor": chat_format.generation_prompt,
        "fields": {
            "reasoning_content": {
                "open_pattern": r"\A\s*<think>\s*",
                "close_pattern": r"\s*</think>\s*",
                "content": "text",
            },
            "tool_calls": {
                "open_pattern": rf"{_JSON}\s*<tool_call>\s*+{_CALL}\s*+(?=</tool_call>)",
                "close": "</tool_call>",
                "content": "text",
                "repeats": True,
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{arguments}"}},
            },
            "content": {
                "close_pattern": rf"\s*(?:{ends})\s*",
                "content": "text",
                "repeats": True,
                "join": "\n",
            },
        },
    }
