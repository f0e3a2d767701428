"""The tools of many rows, to draw distractors from: the most similar ones first, except equivalent ones."""

from __future__ import annotations

import functools
import math
import random
import re
from collections.abc import Callable, Collection, Iterable, Iterator

from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.conversation.parsing import dump_json
from fc_lightning.conversation.types import Conversation, Tool
from fc_lightning.conversation.value_matching import words

_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_COMMON = 50  # words of more tools, and of more than a fifth of them, are not informative and take the longest to count
_MIN_TOPIC_WORD = 4  # letters; shorter words of a name ("get", "by") do not describe its purpose


class ToolPool:
    """The distinct tools of some conversations.

    Args:
        conversations: The conversations whose tools are used.
        num_tokens: The number of tokens that a tool takes in a prompt.
    """

    def __init__(self, conversations: Iterable[Conversation], num_tokens: Callable[[Tool], int]):
        distinct = {dump_json(tool.to_openai()): tool for one in conversations for tool in one.tools}
        self.tools = list(distinct.values())
        self._num_tokens = num_tokens
        self._costs: dict[int, int] = {}
        self._postings: dict[str, list[int]] = {}  # word -> tools with this word
        for index, tool in enumerate(self.tools):
            for word in tool_words(tool):
                self._postings.setdefault(word, []).append(index)

    @classmethod
    def for_template(cls, conversations: Iterable[Conversation], template: ChatTemplate) -> ToolPool:
        """The tools of some conversations, with their numbers of tokens in a template's tokenizer."""
        backend = template.tokenizer.backend_tokenizer

        def num_tokens(tool: Tool) -> int:
            return len(backend.encode(dump_json(tool.to_openai()["function"]), add_special_tokens=False).ids)

        return cls(conversations, num_tokens)

    def num_tokens(self, index: int) -> int:
        """The tokens of the tool at an index."""
        if index not in self._costs:
            self._costs[index] = self._num_tokens(self.tools[index])
        return self._costs[index]

    def draw(
        self,
        near: Collection[Tool],
        rng: random.Random,
        budget: int,
        unlike: Collection[Tool] = (),
        unlike_topic: str = "",
        limit: float = 0.25,
    ) -> Iterator[Tool]:
        """Draw tools within a token budget, those most similar to ``near`` first; each is skipped with probability 1/2.

        Args:
            near: The offered tools. No tool with one of their names, and no equivalent tool, is drawn.
            rng: Decides which tools are skipped.
            budget: Maximum number of tokens of the drawn tools.
            unlike: Removed tools.
            unlike_topic: A request that no drawn tool may serve: none has an informative word of it in its name.
            limit: From this similarity to a removed tool, a tool is not drawn.
        """
        names = {tool.name for tool in (*near, *unlike)}
        topic = {word for word in words(unlike_topic) if len(word) >= _MIN_TOPIC_WORD}
        for index in self._by_similarity(near):
            tool = self.tools[index]
            if rng.random() < 0.5 or self.num_tokens(index) > budget or tool.name in names:
                continue
            if topic & name_words(tool.name) or any(similarity(tool, other) >= 0.5 for other in near):
                continue
            if any(similarity(tool, other) >= limit for other in unlike):
                continue
            budget -= self.num_tokens(index)
            names.add(tool.name)
            yield tool

    def _by_similarity(self, near: Collection[Tool]) -> list[int]:
        """All tools, ordered by the number of rare words that they share with some others."""
        scores = dict.fromkeys(range(len(self.tools)), 0.0)
        for word in sorted({word for tool in near for word in tool_words(tool)}):
            found = self._postings.get(word, ())
            rarity = math.log(len(self.tools) / len(found)) if found else 0.0
            for index in found if len(found) <= max(_COMMON, len(self.tools) // 5) else ():
                scores[index] += rarity
        return sorted(scores, key=lambda index: -scores[index])


def similarity(first: Tool, second: Tool) -> float:
    """The similarity of two tools, from 0 to 1: shared words of their names or of their descriptions."""
    return max(
        _overlap(name_words(first.name), name_words(second.name)),
        _overlap(_description_words(first.description), _description_words(second.description)),
    )


def tool_words(tool: Tool) -> frozenset[str]:
    """The words of a tool's name and description."""
    return name_words(tool.name) | _description_words(tool.description)


@functools.lru_cache(maxsize=8192)
def name_words(name: str) -> frozenset[str]:
    """The words of a name.

    Example:
        >>> sorted(name_words("Weather_1_GetWeather"))
        ['1', 'get', 'weather']
    """
    return frozenset(words(_CAMEL.sub(" ", name)))


@functools.lru_cache(maxsize=8192)
def _description_words(description: str) -> frozenset[str]:
    return frozenset(words(description))


def _overlap(first: frozenset[str], second: frozenset[str]) -> float:
    return len(first & second) / len(first | second) if first and second else 0.0
