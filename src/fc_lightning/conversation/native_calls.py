"""Tool calls in the native formats of newer Gemma models, instead of JSON between tags.

A call is one line without spaces. Keys are bare words, strings are between quote tokens::

    FunctionGemma  <start_function_call>call:weather{city:<escape>Oslo<escape>,days:2}<end_function_call>
    Gemma 4        <|tool_call>call:weather{city:<|"|>Oslo<|"|>,days:2}<tool_call|>

The tags are tokens of the vocabulary already, so no new embeddings are trained. There is only the strict parsing
mode: a call counts exactly if the exported response template delivers it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import regex

from fc_lightning.conversation.parsing import CallSyntaxError, Turn, parse_literal
from fc_lightning.conversation.turn_parts import Span, answer_spans, fill_gaps
from fc_lightning.conversation.types import Message, ToolCall
from fc_lightning.utils.escaping import shorten


@dataclass(frozen=True)
class NativeSyntax:
    """The tokens of one tool language.

    Attributes:
        name: Its name, a value of ``model.tool_format``.
        tool_tags: Opening and closing tag of a tool's declaration.
        call_tags: Opening and closing tag of a call.
        response_tags: Opening and closing tag of a tool's response. The model writes the opening one to end its turn.
        quote: Token at both ends of a string.
        think_tags: Text before and after reasoning.
        system_role: Role of the turn with system text and tools.
        thinking_switch: Text that asks for reasoning, in front of the system text; empty if there is none.
        mlx_parser: Name of mlx-lm's parser.
        describes_all: Whether the declaration of a parameter without a description has an empty one.
    """

    name: str
    tool_tags: tuple[str, str]
    call_tags: tuple[str, str]
    response_tags: tuple[str, str]
    quote: str
    think_tags: tuple[str, str]
    system_role: str
    mlx_parser: str
    thinking_switch: str = ""
    describes_all: bool = False

    @property
    def tokens(self) -> tuple[str, ...]:
        """The texts that must be single tokens of a vocabulary."""
        return (*self.tool_tags, *self.call_tags, *self.response_tags, self.quote)

    def jinja(self) -> str:
        """A Jinja statement that sets ``syntax``, the variable that ``native.jinja`` reads."""
        return f"{{%- set syntax = {json.dumps(asdict(self))} -%}}\n"

    @cached_property
    def grammar(self) -> str:
        """Definitions in front of a pattern of the `regex` module that contains :attr:`call`."""
        quote, close = re.escape(self.quote), re.escape(self.call_tags[1])
        # Readers cut at the first closing tag, and transformers marks strings with \x01 and \x02.
        character = rf"(?:[^<\x01\x02]|<(?!{quote[1:]}|{close[1:]}))"
        return (
            rf"(?(DEFINE)(?P<string>{quote}{character}*+{quote})"
            r"(?P<number>-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?)"
            r"(?P<value>(?&string)|(?&object)|(?&array)|(?&number)|true|false|null)"
            r"(?P<array>\[(?:(?&value)(?:,(?&value))*+)?+\])"
            r"(?P<object>\{(?:\w++:(?&value)(?:,\w++:(?&value))*+)?+\}))"
        )

    @property
    def call(self) -> str:
        """Pattern of the text between the tags of a call; needs :attr:`grammar`."""
        return r"call:(?P<name>[\w.-]++)(?P<arguments>(?&object))"

    @cached_property
    def _call(self) -> Any:
        return regex.compile(self.grammar + self.call)

    @cached_property
    def _think(self) -> re.Pattern[str]:
        before, after = (re.escape(tag.strip()) for tag in self.think_tags)
        return re.compile(rf"\s*{before}\n(?P<reasoning>.*?){after}", re.DOTALL)

    @cached_property
    def _lexeme(self) -> re.Pattern[str]:
        quote = re.escape(self.quote)
        return re.compile(rf"{quote}(?P<string>.*?){quote}|(?P<key>\w+)(?=:)|[{{}}\[\],:]|[^{{}}\[\],:<]+", re.DOTALL)

    def parse_turn(self, text: str) -> Turn:
        """Parse the text of a model turn, without the tokens that open and end it.

        Example:
            >>> turn = FUNCTIONGEMMA.parse_turn("<start_function_call>call:add{a:2,b:[1,true]}<end_function_call>")
            >>> turn.tool_calls
            (ToolCall(name='add', arguments={'a': 2, 'b': [1, True]}),)
        """
        think = self._think.match(text)
        if not think and text.lstrip().startswith(self.think_tags[0].strip()):
            error = f"{self.think_tags[0].strip()} is not closed: {shorten(text)}"
            return Turn(None, text.strip(), (), (error,), grammatical=False)
        calls: list[ToolCall] = []
        errors: list[str] = []
        outside: list[str] = []
        position = think.end() if think else 0
        for first, last, body in self._bodies(text, position):
            outside.append(text[position:first])
            position = last
            try:
                calls.append(self.parse_call(body))
            except CallSyntaxError as error:
                errors.append(f"call {len(calls) + len(errors) + 1}: {error}")
        content = "".join([*outside, text[position:]]).strip()
        reasoning = think["reasoning"] if think else ""
        tags = (*self.tokens, *(tag.strip() for tag in self.think_tags))
        has_stray_tags = any(tag in content for tag in tags) or self.call_tags[0] in reasoning
        grammatical = bool(calls or errors) != bool(content) and not has_stray_tags
        return Turn(reasoning.strip() if think else None, content, tuple(calls), tuple(errors), grammatical)

    def parse_call(self, body: str) -> ToolCall:
        """Read a call from the text between its tags.

        Raises:
            CallSyntaxError: If the text is not a call.
        """
        found = self._call.fullmatch(body)
        if found is None:
            raise CallSyntaxError(f"not a call of the form `call:NAME{{KEY:VALUE,…}}`: {shorten(body)}")
        words = ((lexeme, lexeme["string"] or lexeme["key"]) for lexeme in self._lexeme.finditer(found["arguments"]))
        quoted = (
            json.dumps(word or "") if lexeme["string"] is not None or lexeme["key"] else lexeme[0]
            for lexeme, word in words
        )
        return ToolCall(found["name"], parse_literal("".join(quoted)))

    def render_turn(self, message: Message) -> str:
        """Write an assistant's turn as the chat template does: the inverse of :meth:`parse_turn`."""
        before, after = self.think_tags
        reasoning = "" if message.reasoning is None else before + message.reasoning + after
        calls = (
            f"{self.call_tags[0]}call:{call.name}{self.render_value(call.arguments)}{self.call_tags[1]}"
            for call in message.tool_calls
        )
        return "".join([reasoning, message.content, *calls])

    def split_turn(self, text: str) -> list[Span]:
        """Split the text of a model turn into its parts, as :func:`fc_lightning.conversation.turn_parts.split_turn`."""
        known: list[Span] = []
        position = 0
        if think := self._think.match(text):
            known.append((*think.span(1), "reasoning"))
            position = think.end()
        for first, last, body in self._bodies(text, position):
            known += answer_spans(text, position, first)
            position = last
            if found := self._call.fullmatch(body):
                offset = first + len(self.call_tags[0])
                known += [(offset + begin, offset + end, part) for begin, end, part in self._call_spans(found)]
        known += answer_spans(text, position, len(text))
        return list(fill_gaps(known, len(text)))

    def _bodies(self, text: str, position: int) -> Iterator[tuple[int, int, str]]:
        """Where each call begins and ends, and the text between its tags; all the rest if it is not closed."""
        opening, closing = self.call_tags
        while (first := text.find(opening, position)) >= 0:
            end = text.find(closing, first)
            position = len(text) if end < 0 else end + len(closing)
            yield first, position, text[first + len(opening) : end if end >= 0 else position]

    def _call_spans(self, call: Any) -> Iterator[Span]:
        """The names and values of a call."""
        yield (*call.span("name"), "function_name")
        depth, value_start, offset = 0, -1, call.start("arguments")
        for lexeme in self._lexeme.finditer(call["arguments"]):
            symbol = lexeme[0]
            if symbol in ("{", "["):
                depth += 1
                value_start = lexeme.start() if depth == 2 else value_start
            elif symbol in ("}", "]"):
                depth -= 1
                if depth == 1:
                    yield offset + value_start, offset + lexeme.end(), "argument_value"
            elif depth == 1 and symbol not in (",", ":"):
                yield offset + lexeme.start(), offset + lexeme.end(), _part(lexeme)

    def render_value(self, value: Any) -> str:
        """Write a JSON value."""
        if isinstance(value, str):
            return self.quote + value + self.quote
        if isinstance(value, dict):
            members = sorted(value.items(), key=lambda member: member[0].lower())
            return "{" + ",".join(f"{key}:{self.render_value(item)}" for key, item in members) + "}"
        if isinstance(value, list):
            return "[" + ",".join(map(self.render_value, value)) + "]"
        return json.dumps(value)


def _part(lexeme: re.Match[str]) -> Any:
    return "argument_name" if lexeme["key"] else "argument_value"


FUNCTIONGEMMA = NativeSyntax(
    "functiongemma",
    tool_tags=("<start_function_declaration>", "<end_function_declaration>"),
    call_tags=("<start_function_call>", "<end_function_call>"),
    response_tags=("<start_function_response>", "<end_function_response>"),
    quote="<escape>",
    think_tags=("<think>\n", "\n</think>\n"),  # plain text: this family has no tokens for reasoning
    system_role="developer",
    mlx_parser="function_gemma",
    describes_all=True,
)
GEMMA4 = NativeSyntax(
    "gemma4",
    tool_tags=("<|tool>", "<tool|>"),
    call_tags=("<|tool_call>", "<tool_call|>"),
    response_tags=("<|tool_response>", "<tool_response|>"),
    quote='<|"|>',
    think_tags=("<|channel>thought\n", "\n<channel|>"),
    system_role="system",
    mlx_parser="gemma4",
    thinking_switch="<|think|>\n",
)
