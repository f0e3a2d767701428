"""Response types, as in When2Call (arXiv:2504.18851): answer, call, ask a follow-up question, or refuse.

Rows are labeled by their category. When2Call lets a model choose among four answers; here the generated turn is
classified by a fixed heuristic that matches words rather than meaning, so the numbers are not comparable with the
paper's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from fc_lightning.evaluation.turns import EvaluatedTurn

WAYS = ("direct", "tool_call", "request_for_info", "cannot_answer")
UNFINISHED = "unfinished"

_REFUSAL = re.compile(
    r"\b(can ?not|can['’]t|unable|not able to|(do not|don['’]t) have|"
    r"(not|isn['’]t|aren['’]t) (available|possible|supported)|(beyond|outside) (of )?my|no (tool|function)s?)\b",
    re.IGNORECASE,
)
_REQUEST = re.compile(r"\?|\bplease (provide|tell|specify|share|give|clarify|confirm)\b", re.IGNORECASE)


def way_of(turn: EvaluatedTurn) -> str:
    """The response type of a generated turn.

    1. A turn that begins a call, readable or not, is a ``tool_call``.
    2. One that reached the limit of new tokens is ``unfinished``.
    3. One that asks, by a question mark or words such as "please provide", is a ``request_for_info``, unless a refusal
       comes before it: "I cannot do that. Anything else?"
    4. One with words such as "cannot" or "unable" is ``cannot_answer``, any other ``direct``. Reasoning is ignored.
    """
    if turn.predicted or not turn.parsed:
        return "tool_call"
    if not turn.finished:
        return UNFINISHED
    answer = turn.text.rpartition("</think>")[2]
    refusal, request = _REFUSAL.search(answer), _REQUEST.search(answer)
    if request and not (refusal and refusal.start() < request.start()):
        return "request_for_info"
    return "cannot_answer" if refusal else "direct"


def meets_request(turn: EvaluatedTurn) -> bool | None:
    """Whether a turn has the labeled response type; None without a label."""
    return way_of(turn) == turn.category if turn.category in WAYS else None


def confusion(turns: Sequence[EvaluatedTurn]) -> dict[str, Counter[str]]:
    """For each label that turns have, how often each response type occurred."""
    counts = {way: Counter(way_of(turn) for turn in turns if turn.category == way) for way in WAYS}
    return {label: ways for label, ways in counts.items() if ways}
