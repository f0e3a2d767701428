"""Joining the requests of two rows, so that the model learns to make the calls of both."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from fc_lightning.conversation.types import Conversation, Tool
from fc_lightning.data.tool_pool import similarity

_JOINTS = (" ", "\n", "\n\n", " Also, ", " And ", " Then: ", " After that, ", " Lastly, ")
_ATTEMPTS = 8
_SIMILAR = 0.5  # from this similarity on, a tool might serve a request that was written for another one


def is_joinable(conversation: Conversation) -> bool:
    """Whether a conversation is one request, answered by calls of offered tools alone."""
    if [message.role for message in conversation.messages if message.role != "system"] != ["user", "assistant"]:
        return False
    answer = conversation.messages[-1]
    return (
        bool(answer.tool_calls)
        and {call.name for call in answer.tool_calls} <= {tool.name for tool in conversation.tools}
        and not answer.content
        and answer.supervised
        and not conversation.defects
        and conversation.rejected is None
    )


def join_requests(conversation: Conversation, rng: random.Random, others: Sequence[Conversation]) -> Conversation:
    """Add the request, the called tools and the calls of another row to those of a row.

    Rows that call an offered tool come first: together, both rows make several calls of it. A row is unchanged if it is
    not joinable, or if none of the rows drawn fits.

    Args:
        conversation: A valid conversation.
        rng: Draws the other row, the places of its tools, and what stands between the requests.
        others: Joinable conversations.
    """
    if not is_joinable(conversation):
        return conversation
    offered = {tool.name for tool in conversation.tools}
    sharing = [one for one in others if any(call.name in offered for call in one.messages[-1].tool_calls)]
    drawn = [one for rows in (sharing, others) for one in rng.sample(rows, min(_ATTEMPTS, len(rows)))]
    other = next((one for one in drawn if _fit(conversation, one)), None)
    if other is None:
        return conversation
    tools = list(conversation.tools)
    for tool in _called_tools(other):
        if tool.name not in offered:
            tools.insert(rng.randint(0, len(tools)), tool)
    question, answer = conversation.messages[-2:]
    other_question, other_answer = other.messages[-2:]
    content = f"{question.content.strip()}{rng.choice(_JOINTS)}{other_question.content.strip()}"
    reasoning = None if answer.reasoning is None else f"{answer.reasoning} {other_answer.reasoning}"
    calls = (*answer.tool_calls, *other_answer.tool_calls)
    joined = (replace(question, content=content), replace(answer, reasoning=reasoning, tool_calls=calls))
    messages = (*conversation.messages[:-2], *joined)
    return replace(conversation, messages=messages, tools=tuple(tools), raw_turns=(), gold=())


def _fit(first: Conversation, second: Conversation) -> bool:
    """Whether the calls of both rows are right for both requests together."""
    (*before, question, answer), (*other_before, other_question, other_answer) = first.messages, second.messages
    if before != other_before or (answer.reasoning is None) != (other_answer.reasoning is None):
        return False
    if question == other_question or set(answer.tool_calls) & set(other_answer.tool_calls):
        return False
    offered = {tool.name: tool for tool in first.tools}
    if any(offered.get(tool.name, tool) != tool for tool in _called_tools(second)):
        return False  # two tools of one name
    if set(offered) == {tool.name for tool in second.tools}:
        return True
    # An uncalled tool that is similar to a called one may fit the other request as well as the called one does.
    uncalled = [tool for tool in first.tools if tool not in _called_tools(first)]
    added = [tool for tool in _called_tools(second) if tool.name not in offered]
    pairs = [*product(added, first.tools), *product(_called_tools(second), uncalled)]
    return all(one == other or similarity(one, other) < _SIMILAR for one, other in pairs)


def _called_tools(conversation: Conversation) -> list[Tool]:
    called = {call.name for call in conversation.messages[-1].tool_calls}
    return [tool for tool in conversation.tools if tool.name in called]
