"""The chat template: a conversation becomes token ids, and a mask that says which of them are learned.

One Jinja file renders training, evaluation and serving. What the model is to learn stands in the template too, between
``{% generation %}`` and ``{% endgeneration %}``: no text is ever searched for it.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from fc_lightning.chat_template.tokens import SpecialToken
from fc_lightning.chat_template.tool_formats import ChatFormat, chat_format_of
from fc_lightning.chat_template.words import Words, word_pattern
from fc_lightning.conversation.parsing import dump_json
from fc_lightning.conversation.types import Conversation, Message, Tool

Render = Literal["canonical", "verbatim"]
Supervise = Literal["assistant", "all"]

# Stands inside a tag that is ordinary text, so that the tag is not read as a token: U+FDD0 is no character, it may
# never be in a text that is exchanged. It is taken out again before anything is encoded.
_BREAK = "\ufdd0"


class ChatTemplateError(ValueError):
    """No template fits the tokenizer, or the template cannot do what is asked of it."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: What a server would send to the model, byte for byte.
        supervised_spans: Half-open ranges of characters of ``text`` that the template marks as the model's own.
        breaks: Places in ``text`` where no token may reach across, because a tag stands there that is ordinary text.
    """

    text: str
    supervised_spans: tuple[tuple[int, int], ...]
    breaks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens.

    Attributes:
        input_ids: The ids, all of the text.
        supervised_spans: Half-open ranges of tokens that are learned, in order; none touches the next.
    """

    input_ids: list[int]
    supervised_spans: list[tuple[int, int]]

    @property
    def supervised_mask(self) -> list[bool]:
        """One flag a token: whether it is learned."""
        mask = [False] * len(self.input_ids)
        for first, last in self.supervised_spans:
            mask[first:last] = [True] * (last - first)
        return mask


class ChatTemplate:
    """Renders and encodes conversations for one tokenizer.

    Args:
        tokenizer: A fast tokenizer, with the tags registered if they are to be tokens.
        render: ``canonical`` takes tools and calls apart and writes them again as JSON; ``verbatim`` keeps the row's
            own text, as the original recipe does.
        file: A Jinja file to use instead of the template that fits the tokenizer.

    Raises:
        ChatTemplateError: If no template fits, or it does not mark the model's turns.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, render: Render = "canonical", file: str | Path | None = None
    ):
        self.tokenizer = tokenizer
        self.render_mode = render
        vocabulary = tokenizer.get_vocab()
        self.chat_format = chat_format_of(vocabulary)
        self.source = _template_source(tokenizer, self.chat_format, render, file)
        self.longest_token = max(map(len, vocabulary))  # in characters
        self._variables = {
            name: getattr(tokenizer, name) for name in ("bos_token", "eos_token") if getattr(tokenizer, name)
        }
        control = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        control |= set(self.chat_format.marker_tokens) if self.chat_format else set()
        if render == "canonical":
            control |= {token for token in SpecialToken if token in vocabulary}
        longest_first = sorted(control, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        pattern = word_pattern(tokenizer.backend_tokenizer)
        self._words = pattern and Words(tokenizer.backend_tokenizer, pattern)

    @staticmethod
    def end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Ids that end a model turn: that of its chat_format, and the end of the text."""
        vocabulary = tokenizer.get_vocab()
        chat_format = chat_format_of(vocabulary)
        ends = {vocabulary[chat_format.turn_end] if chat_format else None, tokenizer.eos_token_id}
        return sorted(token for token in ends if token is not None)

    def has_generation_prompt(self, answer: str) -> bool:
        """Whether a prompt ends with this text, as the chat_format's own does."""
        prompt = [{"role": "user", "content": "?"}]
        return self.render(prompt, Conversation("", ()), generation_prompt=True).text.endswith(answer)

    def messages(self, conversation: Conversation) -> list[dict[str, Any]]:
        """The turns as the template takes them: in OpenAI's shape, or as ``{"role", "content"}`` if verbatim.

        Raises:
            ChatTemplateError: If the rendering is verbatim and the source has no text of its own.
        """
        if self.render_mode == "canonical":
            return [openai_message(message) for message in conversation.messages]
        if not conversation.raw_turns:
            raise ChatTemplateError("the row has no text of its own: use `data.render: canonical`")
        return [{"role": role, "content": text} for role, text in conversation.raw_turns]

    def model_turns(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """The indices of the model's turns."""
        return [index for index, message in enumerate(messages) if message["role"] in ("assistant", "model")]

    def render(
        self, messages: Sequence[dict[str, Any]], conversation: Conversation, generation_prompt: bool = False
    ) -> Rendered:
        """Render turns of a conversation.

        Args:
            messages: Its turns, or the first few, from :meth:`messages`.
            conversation: Gives the tools.
            generation_prompt: Whether to end with the opening of a model turn.
        """
        tools = [self._openai_tool(tool) for tool in conversation.tools] if self.render_mode == "canonical" else None
        texts, spans = render_jinja_template(
            [self._break_tags(list(messages))],
            tools=self._break_tags(tools) or None,
            chat_template=self.source,
            return_assistant_tokens_mask=True,
            add_generation_prompt=generation_prompt,
            **self._variables,
        )
        return _without_breaks(texts[0], spans[0])

    def encode(self, rendered: Sequence[Rendered], supervise: Supervise = "assistant") -> list[Encoded]:
        """Encode rendered conversations; all in one call of the tokenizer, if not by words.

        Args:
            rendered: Any number of conversations.
            supervise: ``assistant`` learns what the model says, up to the token that ends its turn; ``all`` learns
                every token.
        """
        words = self._words
        by_words = [words is not None and _ends_at_words(one, words) for one in rendered]
        whole = iter(self._encode_whole([one for one, by in zip(rendered, by_words, strict=True) if not by]))
        encoded = [
            _encode_words(one, words) if words is not None and by else next(whole)
            for one, by in zip(rendered, by_words, strict=True)
        ]
        if supervise == "all":
            return [Encoded(one.input_ids, _merged([(0, len(one.input_ids))])) for one in encoded]
        return encoded

    def _encode_whole(self, rendered: Sequence[Rendered]) -> list[Encoded]:
        """Encode texts as they are, all in one call of the tokenizer."""
        cuts = [(0, *one.breaks, len(one.text)) for one in rendered]
        pieces = [one.text[a:b] for one, cut in zip(rendered, cuts, strict=True) for a, b in pairwise(cut)]
        if not pieces:
            return []
        # Its backend, since the tokenizer itself would make a list of every token's place in the text.
        encodings = iter(self.tokenizer.backend_tokenizer.encode_batch(pieces, add_special_tokens=False))
        return [_join(one, cut, encodings) for one, cut in zip(rendered, cuts, strict=True)]

    def _openai_tool(self, tool: Tool) -> dict[str, Any]:
        """A tool as OpenAI's API writes it; its schema as text for the shipped templates, which saves many copies."""
        one = tool.to_openai()
        if "macro tool_lines" in self.source and tool.parameters:
            one["function"]["parameters"] = dump_json(tool.parameters)
        return one

    def _break_tags(self, value: Any) -> Any:
        """The value with every control token in its texts broken, so that it stays text."""
        if isinstance(value, str):
            if "<" not in value:
                return value
            return self._control.sub(lambda match: match[0][0] + _BREAK + match[0][1:], value)
        if isinstance(value, dict):
            return {
                key if "<" not in key else self._break_tags(key): self._break_tags(item) for key, item in value.items()
            }
        return [self._break_tags(item) for item in value] if isinstance(value, list) else value


def _template_source(
    tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat | None, render: Render, file: str | Path | None
) -> str:
    """The Jinja text to use for a tokenizer: the file, its own where that marks the model's turns, its chat_format's."""
    name, own = tokenizer.name_or_path, tokenizer.chat_template
    gemma = chat_format is not None and chat_format.name == "gemma"
    if file is not None:
        path = Path(file)
        if not path.is_file():
            raise ChatTemplateError(f"{path}: there is no such chat template file (`data.chat_template`)")
        source = path.read_text(encoding="utf-8")
    elif render == "verbatim" and not gemma:
        raise ChatTemplateError(f"{name}: verbatim rendering is Gemma's; use `data.render: canonical`")
    elif gemma:
        source = _shipped("gemma_verbatim") if render == "verbatim" else _shipped("macros", "gemma_canonical")
    elif chat_format is not None and "endgeneration" not in str(own):
        source = chat_format.jinja() + _shipped("macros", "turns_canonical")
    elif not isinstance(own, str):
        raise ChatTemplateError(
            f"{name}: the tokenizer is of no chat_format known here (Gemma, ChatML, Llama 3) and has no chat template; "
            "name a file with `data.chat_template`"
        )
    else:
        source = own
    if "endgeneration" not in source:
        raise ChatTemplateError(
            f"{file or name}: the chat template does not mark the model's turns with {{% generation %}} … "
            "{% endgeneration %}, so nothing can be learned from it; add the marks in a copy and name it with "
            "`data.chat_template`"
        )
    return source


def _shipped(*names: str) -> str:
    folder = files("fc_lightning.chat_template") / "templates"
    return "".join((folder / f"{name}.jinja").read_text(encoding="utf-8") for name in names)


def openai_message(message: Message) -> dict[str, Any]:
    """A message as OpenAI's API writes it, a thought as ``reasoning_content``; arguments stay an object."""
    out: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        out["reasoning_content"] = message.reasoning
    if message.tool_calls:
        out["tool_calls"] = [{"type": "function", "function": call.to_dict()} for call in message.tool_calls]
    return out


def _without_breaks(text: str, spans: Iterable[tuple[int, int]]) -> Rendered:
    """Take the break marks out of a text, and keep where they were."""
    marks = [index for index, char in enumerate(text) if char == _BREAK] if _BREAK in text else []
    moved = tuple((a - bisect_right(marks, a - 1), b - bisect_right(marks, b - 1)) for a, b in spans)
    return Rendered(text.replace(_BREAK, ""), moved, tuple(mark - nth for nth, mark in enumerate(marks)))


def _ends_at_words(one: Rendered, words: Words) -> bool:
    """Whether supervised ranges begin and end where words do; a break is a cut anyway."""
    places = set(chain.from_iterable(one.supervised_spans)).difference(one.breaks)
    return all(words.is_cut(one.text, place) for place in places)


def _encode_words(one: Rendered, words: Words) -> Encoded:
    """Encode a text whose supervised ranges begin and end where words do."""
    places = sorted({0, len(one.text), *one.breaks, *chain.from_iterable(one.supervised_spans)})
    ids = bytearray()
    tokens_before = {0: 0}
    for start, end in pairwise(places):
        ids += words.encode(one.text, start, end)
        tokens_before[end] = len(ids) // 4
    spans = [(tokens_before[begin], tokens_before[end]) for begin, end in one.supervised_spans]
    return Encoded(array("i", ids).tolist(), _merged(spans))


def _join(one: Rendered, cut: Sequence[int], encodings: Any) -> Encoded:
    """Join the encoded pieces of one text; the tokens that start inside of its supervised ranges are learned."""
    ids: list[int] = []
    pieces: list[tuple[int, int, Any]] = []  # first character, first token
    for offset in cut[:-1]:
        piece = next(encodings)
        pieces.append((offset, len(ids), piece))
        ids += piece.ids
    spans = [(_first_token(pieces, begin), _first_token(pieces, end)) for begin, end in one.supervised_spans]
    return Encoded(ids, _merged(spans))


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges, without empty ones; those that touch are one."""
    out: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if out and first <= out[-1][1]:
            out[-1] = (out[-1][0], max(last, out[-1][1]))
        elif first < last:
            out.append((first, last))
    return out


def _first_token(pieces: Sequence[tuple[int, int, Any]], place: int) -> int:
    """The first token that starts at a place in the text or behind it."""
    offset, token, piece = pieces[bisect_right(pieces, place, key=itemgetter(0)) - 1]
    inside = piece.char_to_token(place - offset)
    if inside is None:  # the end of the text, or what the tokenizer leaves out
        return token + bisect_left([start for start, _ in piece.offsets], place - offset)
    return token + inside + (piece.token_to_chars(inside)[0] < place - offset)
