"""Augmentation: rows are augmented differently in every epoch, so that the model reads descriptions.

Every function takes a valid conversation and returns a valid one; where it does not apply, it returns the same one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from fc_lightning.conversation.types import Conversation, Message, Tool, ToolCall
from fc_lightning.data.name_masking import mask_names
from fc_lightning.data.reasoning import rationale
from fc_lightning.data.request_joining import join_requests
from fc_lightning.data.sources import DataError
from fc_lightning.data.tool_pool import ToolPool, similarity

Perturbation = Literal["shuffle_tools", "distractors", "mask_names", "drop_tool"]

# Labels under which the metrics of perturbed turns are logged.
PERTURBATION_LABELS: dict[Perturbation, str] = {
    "shuffle_tools": "shuffled",
    "distractors": "distracted",
    "mask_names": "masked",
    "drop_tool": "dropped",
}
_REFUSALS = (
    "None of the available functions can help with this request.",
    "None of the available tools can help with this request.",
    "Sorry, the available tools cannot do this.",
    "I have no tool for this request.",
)


@dataclass(frozen=True)
class Augmentation:
    """Augmentations of training rows, redrawn in every epoch. A fraction is the probability that a row is augmented.

    Attributes:
        shuffle_tools: Fraction of rows whose tools and parameters are shuffled; call arguments are reordered to match.
        distractors: Fraction of rows that also offer tools of other rows, the most similar ones first.
        distractor_tokens: Maximum number of tokens of a row's distractors.
        drop_tool: Fraction of rows whose called tool is removed; the turn then says that no tool fits.
        drop_tool_similarity: A tool at least this similar (0 to 1) to the called one might do the same, so that a row
            that also offers it is unchanged. A row's only tool is replaced by a tool of another row that is less than
            half as similar. With higher values, the model learns not to call nearer tools.
        mask_names: Fraction of rows whose functions and parameters are renamed to meaningless words in schemas, calls
            and tool responses, so that only descriptions say what they do (Lin et al., arXiv:2410.04587).
        join_requests: Fraction of rows to which the request, called tools and calls of another row are added. Only
            rows of one request that is answered by calls alone are joined.
    """

    shuffle_tools: float = 0.0
    distractors: float = 0.0
    distractor_tokens: int = 256
    drop_tool: float = 0.0
    drop_tool_similarity: float = 0.5
    mask_names: float = 0.0
    join_requests: float = 0.0

    def __post_init__(self) -> None:
        for name in (*PERTURBATION_LABELS, "join_requests", "drop_tool_similarity"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"`data.augmentation.{name}`: must be between 0 and 1, not {getattr(self, name)}")
        if self.distractor_tokens < 0:
            raise DataError("`data.augmentation.distractor_tokens` must not be negative")


def augment(
    conversation: Conversation,
    settings: Augmentation,
    pool: ToolPool,
    seed: int | None,
    epoch: int,
    joinable: Sequence[Conversation] = (),
) -> Conversation:
    """The conversation as it is trained on in an epoch; the same for the same seed, row ID and epoch.

    Each augmentation has its own random generator, so that enabling one does not change the others.

    Args:
        conversation: A valid conversation, or one with defects, which is returned as it is.
        settings: The fractions.
        pool: The tools of other rows.
        seed: Seed of the random generators.
        epoch: Number of the epoch.
        joinable: Rows whose requests may be joined to that of this one.
    """
    if conversation.defects:
        return conversation

    def draw(name: str) -> random.Random | None:
        rng = random.Random(f"{seed}/{epoch}/{conversation.id}/{name}")
        return rng if rng.random() < getattr(settings, name) else None

    out = conversation
    if rng := draw("drop_tool"):
        out = drop_tool(out, rng, pool, settings.drop_tool_similarity)
    if rng := draw("join_requests"):
        out = join_requests(out, rng, joinable)
    if rng := draw("distractors"):
        dropped = [tool for tool in conversation.tools if tool not in out.tools]
        out = add_distractors(out, rng, pool, round(settings.distractor_tokens * rng.random()), dropped)
    if rng := draw("shuffle_tools"):
        out = shuffle_tools(out, rng)
    if rng := draw("mask_names"):
        out = mask_names(out, rng)
    return out


def perturb(conversation: Conversation, name: Perturbation, pool: ToolPool, seed: int = 0) -> Conversation | None:
    """A held-out conversation with one perturbation, always the same one; None where it does not apply."""
    perturbations: dict[Perturbation, Callable[[Conversation, random.Random], Conversation]] = {
        "shuffle_tools": shuffle_tools,
        "distractors": lambda one, rng: add_distractors(one, rng, pool, Augmentation.distractor_tokens),
        "mask_names": mask_names,
        "drop_tool": lambda one, rng: drop_tool(one, rng, pool, Augmentation.drop_tool_similarity),
    }
    if conversation.defects:
        return None
    perturbed = perturbations[name](conversation, random.Random(f"perturbation/{seed}/{conversation.id}/{name}"))
    return None if perturbed is conversation else perturbed


def shuffle_tools(conversation: Conversation, rng: random.Random) -> Conversation:
    """Shuffle the tools, and the parameters in their schemas; call arguments are reordered to match.

    The order of calls is unchanged, because tool responses follow it.
    """
    if not conversation.tools:
        return conversation
    tools = [replace(tool, parameters=_shuffled(tool.parameters, rng)) for tool in conversation.tools]
    rng.shuffle(tools)
    schemas = {tool.name: tool.parameters for tool in tools}

    def reorder(call: ToolCall) -> ToolCall:
        return ToolCall(call.name, _in_schema_order(call.arguments, schemas.get(call.name)))

    def reorder_calls(message: Message) -> Message:
        return replace(message, tool_calls=tuple(map(reorder, message.tool_calls)))

    out = replace(conversation, messages=tuple(map(reorder_calls, conversation.messages)), tools=tuple(tools))
    rejected = conversation.rejected
    return replace(out, raw_turns=(), rejected=None if rejected is None else reorder_calls(rejected))


def add_distractors(
    conversation: Conversation, rng: random.Random, pool: ToolPool, budget: int, dropped: Sequence[Tool] = ()
) -> Conversation:
    """Offer tools of other rows as well.

    A tool that may replace an offered one is not used. If a turn makes no call although tools are offered, a tool whose
    name has a word of the user's request is not used either, because it might fit.
    """
    if not conversation.tools:
        return conversation
    request = "\n".join(one.content for one in conversation.messages if one.role == "user")
    topic = request if any(one.role == "assistant" and not one.tool_calls for one in conversation.messages) else ""
    tools = list(conversation.tools)
    for tool in list(pool.draw(conversation.tools, rng, budget, dropped, topic)):
        tools.insert(rng.randint(0, len(tools)), tool)
    if len(tools) == len(conversation.tools):
        return conversation
    return replace(conversation, tools=tuple(tools), raw_turns=())


def drop_tool(conversation: Conversation, rng: random.Random, pool: ToolPool, limit: float) -> Conversation:
    """Remove the tools of the first turn with calls; that turn says that no tool fits, and is the last one.

    If they were the only tools, a tool of another row is offered instead. A row is unchanged if another of its tools
    may do the same, if the answer must follow a schema, or if there is no other tool.

    Args:
        conversation: A valid conversation.
        rng: Draws the other row's tool and the answer.
        pool: The tools of other rows.
        limit: ``drop_tool_similarity`` of :class:`Augmentation`.
    """
    calling = [index for index, message in enumerate(conversation.messages) if message.tool_calls]
    if not calling or conversation.response_schema is not None:
        return conversation
    message = conversation.messages[calling[0]]
    called = {call.name for call in message.tool_calls}
    dropped = [tool for tool in conversation.tools if tool.name in called]
    kept = [tool for tool in conversation.tools if tool.name not in called]
    if any(similarity(tool, other) >= limit for tool in kept for other in dropped):
        return conversation
    request = "\n".join(one.content for one in conversation.messages[: calling[0]] if one.role == "user")
    if not kept:  # nobody has labelled a tool of another row as not fitting: it must differ more
        kept = list(islice(pool.draw(dropped, rng, 2**31, dropped, request, limit / 2), 1))
    if not kept:
        return conversation
    answer = replace(message, content=rng.choice(_REFUSALS), reasoning=None, tool_calls=())
    messages = (*conversation.messages[: calling[0]], answer)
    out = replace(conversation, messages=messages, tools=tuple(kept), raw_turns=(), gold=(), rejected=None)
    if message.reasoning is None:
        return out
    answer = replace(answer, reasoning=rationale(out, calling[0]))
    return replace(out, messages=(*messages[:-1], answer))


def _shuffled(schema: Any, rng: random.Random) -> Any:
    """A schema with the properties of each object in random order."""
    if isinstance(schema, list):
        return [_shuffled(item, rng) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {}
    for key, value in schema.items():
        if key == "properties" and isinstance(value, dict):
            names = list(value)
            rng.shuffle(names)
            out[key] = {name: _shuffled(value[name], rng) for name in names}
        else:
            out[key] = value if key in ("enum", "const", "default", "examples") else _shuffled(value, rng)
    return out


def _in_schema_order(value: Any, schema: Any) -> Any:
    """A value with the keys of its objects in the order of their schema; keys that the schema lacks come last."""
    if not isinstance(schema, dict):
        return value
    if isinstance(value, list):
        return [_in_schema_order(item, schema.get("items")) for item in value]
    properties = schema.get("properties")
    if not isinstance(value, dict) or not isinstance(properties, dict):
        return value
    place = {name: number for number, name in enumerate(properties)}
    names = sorted(value, key=lambda name: place.get(name, len(place)))
    return {name: _in_schema_order(value[name], properties.get(name)) for name in names}
