"""The table of the Berkeley Function Calling Leaderboard, from evaluated turns of its categories."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from fc_lightning.data.bfcl import CATEGORIES, IRRELEVANCE, LIVE, NON_LIVE
from fc_lightning.evaluation.turns import EvaluatedTurn


def leaderboard(turns: Sequence[EvaluatedTurn]) -> dict[str, tuple[int, float]]:
    """Number of questions and accuracy of each category, and of ``non-live`` and ``live`` if all of theirs are there.

    Calls are correct if they are among the accepted alternatives; where no function fits, a turn is correct if it ends
    without a call. As on the leaderboard, ``non-live`` is the mean over categories, and ``live`` over questions. Its
    non-live simple category has questions for Java and JavaScript too, which are not measured here.
    """
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for turn in turns:
        is_bfcl = turn.category in IRRELEVANCE or turn.alternatives_match is not None
        if turn.category in CATEGORIES and is_bfcl:
            right = turn.exact_match if turn.category in IRRELEVANCE else turn.alternatives_match
            verdicts[turn.category].append(bool(right))
    scores = {name: (len(verdicts[name]), _mean(verdicts[name])) for name in CATEGORIES if name in verdicts}
    if scores.keys() >= set(NON_LIVE):
        questions = sum(scores[name][0] for name in NON_LIVE)
        scores["non-live"] = (questions, math.fsum(scores[name][1] for name in NON_LIVE) / len(NON_LIVE))
    if scores.keys() >= set(LIVE):
        live = [verdict for name in LIVE for verdict in verdicts[name]]
        scores["live"] = (len(live), _mean(live))
    return scores


def _mean(verdicts: Sequence[bool]) -> float:
    return sum(verdicts) / len(verdicts)
