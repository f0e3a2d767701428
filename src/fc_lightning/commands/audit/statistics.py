"""Statistics of a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.packing import plan_packs
from fc_lightning.data.prepare import Prepared


@dataclass
class Statistics:
    """Statistics of a split."""

    rows: int
    documents: int
    turns: int
    thoughts: int  # model turns with reasoning
    tokens: int
    supervised: int
    lengths: list[int]
    packs: int  # number of packs; without packing, the number of documents
    packing: float  # fraction of the packs' tokens that are not padding
    calls: dict[str, int]  # turns without a call, with one, and with several
    tools: dict[str, int]  # calls of each tool, the most frequent first
    offered: dict[str, int] = field(default_factory=dict)  # number of conversations that offer each tool
    spelled_out: float = 0.0  # fraction of turns with calls whose question contains the name of a called tool
    known_tools: float | None = None  # fraction of offered tools that training offers too; None for training itself
    known_calls: float | None = None  # fraction of calls to tools that training offers too; None for training itself

    def compare(self, train: Statistics) -> None:
        """Fill in the fractions that refer to training."""
        known = [name for name in self.offered if name in train.offered]
        self.known_tools = len(known) / max(len(self.offered), 1)
        calls = sum(count for name, count in self.tools.items() if name in train.offered)
        self.known_calls = calls / max(sum(self.tools.values()), 1)

    def to_dict(self) -> dict[str, Any]:
        """The statistics as JSON-serializable values."""
        return asdict(self)


def measure(conversations: Sequence[Conversation], prepared: Prepared, capacity: int | None) -> Statistics:
    """Measure a split's usable conversations; ``capacity`` is the length of a pack, None without packing."""
    lengths = [len(ids) for ids in prepared.documents["input_ids"]]
    packs = plan_packs(lengths, capacity) if capacity else [[index] for index in range(len(lengths))]
    room = len(packs) * capacity if capacity else sum(lengths)
    turns = [one for conversation in conversations for one in conversation.messages if one.role == "assistant"]
    kinds = Counter(("none", "one", "several")[min(len(turn.tool_calls), 2)] for turn in turns)
    tools = Counter(call.name for turn in turns for call in turn.tool_calls)
    spelled = [flag for conversation in conversations for flag in _spelled_out(conversation)]
    return Statistics(
        rows=prepared.report.rows,
        documents=prepared.report.documents,
        turns=len(turns),
        thoughts=sum(turn.reasoning is not None for turn in turns),
        tokens=prepared.report.tokens,
        supervised=prepared.report.supervised,
        lengths=lengths,
        packs=len(packs),
        packing=sum(lengths) / room if room else 0.0,
        calls={kind: kinds[kind] for kind in ("none", "one", "several")},
        tools=dict(tools.most_common()),
        offered=dict(
            Counter(name for one in conversations for name in {tool.name for tool in one.tools}).most_common()
        ),
        spelled_out=sum(spelled) / len(spelled) if spelled else 0.0,
    )


def _spelled_out(conversation: Conversation) -> list[bool]:
    """For each turn with calls, whether the last question contains the name of a called tool."""
    question, flags = "", []
    for message in conversation.messages:
        if message.role == "user":
            question = message.content
        elif message.tool_calls:
            flags.append(any(call.name in question for call in message.tool_calls))
    return flags
