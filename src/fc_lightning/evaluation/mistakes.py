"""Mistakes: from several generations per prompt, the wrong turn that a model makes most often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from fc_lightning.chat_template.template import openai_message
from fc_lightning.conversation.parsing import parse_turn
from fc_lightning.conversation.types import Conversation, Message
from fc_lightning.evaluation.turns import EvaluatedTurn


def most_frequent_mistake(samples: Sequence[EvaluatedTurn]) -> EvaluatedTurn | None:
    """The turn with the wrong calls that were generated most often from one prompt; None if there is none.

    A turn that does not end, cannot be parsed, or is among the row's accepted alternatives is not a mistake that a
    preference can teach.

    Args:
        samples: Generations from the same prompt.
    """
    readable = [turn for turn in samples if turn.parsed and turn.grammar]
    wrong = [turn for turn in readable if not turn.exact_match and not turn.alternatives_match]
    if not wrong:
        return None
    counts = Counter(frozenset(Counter(turn.predicted).items()) for turn in wrong)
    return max(wrong, key=lambda turn: counts[frozenset(Counter(turn.predicted).items())])  # the first of the most


def preference_rows(turns: Iterable[EvaluatedTurn], conversations: Iterable[Conversation]) -> list[dict[str, Any]]:
    """Rows with ``messages``, ``tools``, ``chosen`` and ``rejected``, one for each prompt with a mistake.

    Args:
        turns: Evaluated turns, all generations from a prompt in a row.
        conversations: The conversations that the prompts were made of; ``chosen`` is their own turn.
    """
    by_id = {conversation.id: conversation for conversation in conversations}
    rows = []
    for (id, number), samples in groupby(turns, key=lambda turn: (turn.id, turn.turn)):
        mistake, conversation = most_frequent_mistake(list(samples)), by_id[id]
        if mistake is None:
            continue
        parsed = parse_turn(mistake.text, strict=True)
        assistant = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
        index = assistant[number]
        rejected = Message("assistant", parsed.content, parsed.reasoning, parsed.tool_calls)
        rows.append(
            {
                "id": f"{id}/{number}",
                "category": conversation.category,
                "messages": [openai_message(message) for message in conversation.messages[:index]],
                "tools": [tool.to_openai() for tool in conversation.tools],
                "chosen": openai_message(conversation.messages[index]),
                "rejected": openai_message(rejected),
            }
        )
    return rows
