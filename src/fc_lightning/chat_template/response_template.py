"""The response template: how a server splits a model turn into reasoning, calls and answer.

transformers' parser (``tokenizer.parse_response``, ``transformers serve``) opens a region where one pattern matches and
closes it where another does. If every ``<tool_call>`` opened one, a malformed call would end the request with an error.
So only a complete call opens one; all other text is content, and the client sees it.
"""

from __future__ import annotations

import re
from typing import Any

from fc_lightning.chat_template.tool_formats import CHAT_FORMATS, ChatFormat
from fc_lightning.conversation.call_pattern import CALL_OBJECT, JSON_GRAMMAR
from fc_lightning.conversation.native_calls import NativeSyntax


def response_template(
    chat_format: ChatFormat = CHAT_FORMATS[0], eos_token: str = "<eos>", syntax: NativeSyntax | None = None
) -> dict[str, Any]:
    """The template that reads what the canonical chat template writes, for ``tokenizer.response_template``.

    ``reasoning_content`` is a think block that opens the turn; ``tool_calls`` are its calls in OpenAI's shape, with the
    arguments as the text that the model generated, or as an object if it is not JSON; ``content`` is everything else.
    Streaming gives the same parts.

    Args:
        chat_format: Markers of the turns. The default is Gemma's.
        eos_token: The token that ends a text.
        syntax: The native tool language; None for Hermes.
    """
    if syntax:
        return _native_response_template(syntax, chat_format, eos_token)
    ends = "|".join(dict.fromkeys(map(re.escape, (chat_format.turn_end, eos_token))))
    call = _with_spaces_before(rf"<tool_call>{CALL_OBJECT}(?=</tool_call>)")
    return {
        "version": 1,
        "defaults": {"role": "assistant"},
        "start_anchor": chat_format.generation_prompt,
        "fields": {
            "reasoning_content": {
                "open_pattern": r"\A\s*+<think>\s*+",
                "close_pattern": rf"{_with_spaces_before('</think>')}\s*+",
                "content": "text",
            },
            "tool_calls": {
                "open_pattern": JSON_GRAMMAR + call,
                "close": "</tool_call>",
                "content": "text",
                "repeats": True,
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{arguments}"}},
            },
            "content": {
                "close_pattern": rf"{_with_spaces_before(ends)}\s*+",
                "content": "text",
                "repeats": True,
                "join": "\n",
            },
        },
    }


def _native_response_template(syntax: NativeSyntax, chat_format: ChatFormat, eos_token: str) -> dict[str, Any]:
    ends = dict.fromkeys((chat_format.turn_end, eos_token, syntax.response_tags[0]))
    (opening, closing), (think, think_end) = map(re.escape, syntax.call_tags), map(str.strip, syntax.think_tags)
    reading = {"unquoted_keys": True, "string_delims": [[syntax.quote, syntax.quote]]}
    call = rf"{opening}call:(?P<name>[\w.-]++)(?=(?&object){closing})"
    return {
        "version": 1,
        "defaults": {"role": "assistant"},
        # A turn that continues after a response begins there.
        "start_anchor": [chat_format.generation_prompt, syntax.response_tags[1]],
        "fields": {
            "reasoning_content": {
                "open_pattern": rf"\A\s*+{re.escape(think)}\n",
                "close_pattern": rf"{_with_spaces_before(re.escape(think_end))}\s*+",
                "content": "text",
            },
            "tool_calls": {
                "open_pattern": syntax.grammar + _with_spaces_before(call),
                "close": syntax.call_tags[1],
                "content": "json",
                "content_args": reading,
                "repeats": True,
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
            },
            "content": {
                "close_pattern": rf"{_with_spaces_before('|'.join(map(re.escape, ends)))}\s*+",
                "content": "text",
                "repeats": True,
                "join": "\n",
            },
        },
    }


def _with_spaces_before(pattern: str) -> str:
    r"""A pattern that also takes the whitespace before it, in linear time.

    A run of whitespace is tried from its first character only: with ``\s*`` it would be tried from each of them. The
    pattern is written twice because the `regex` module, where it searches for partial matches while a turn is streamed,
    looks ahead from each position for text that all matches contain.
    """
    return rf"(?:(?<!\s)\s++(?:{pattern})|(?:{pattern}))"
