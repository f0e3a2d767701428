"""Token parts: the kind of each supervised token, from the template's markers and the parser, and weights by kind."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from fc_lightning.chat_template.template import ChatTemplateError, Encoded, Rendered
from fc_lightning.conversation.native_calls import NativeSyntax
from fc_lightning.conversation.turn_parts import TURN_PARTS, split_turn

_TAG = TURN_PARTS.index("tag")
_PROMPT = len(TURN_PARTS)  # outside of model turns; supervised only with `model.supervise: all`


@dataclass(frozen=True)
class TokenWeights:
    """Weights of supervised tokens in the training loss, by kind. If all are 1, the loss is the plain one.

    Attributes:
        reasoning: Text between the think tags.
        tag: Tags, the syntax of calls, and the token that ends a turn.
        function_name: Name of the called function.
        argument_name: Names of arguments.
        argument_value: Values of arguments.
        answer: Text outside of reasoning and calls.
    """

    reasoning: float = 1.0
    tag: float = 1.0
    function_name: float = 1.0
    argument_name: float = 1.0
    argument_value: float = 1.0
    answer: float = 1.0

    def __post_init__(self) -> None:
        if min(astuple(self)) < 0 or max(astuple(self)) <= 0:
            raise ChatTemplateError(
                "`model.token_weights`: weights must not be negative, and at least one must be positive"
            )

    @property
    def by_part(self) -> tuple[float, ...]:
        """The weight of each part, by the numbers that :func:`supervised_parts` gives."""
        return (*(float(getattr(self, part)) for part in TURN_PARTS), 1.0)


def supervised_parts(
    rendered: Rendered, encoded: Encoded, turn_ends: Sequence[str], syntax: NativeSyntax | None = None
) -> list[int]:
    """What each supervised token is: an index in ``TURN_PARTS``, or one more for text outside of model turns.

    A token with characters of several parts counts as the first one that is not a tag: ``"get`` is a function name.

    Args:
        rendered: A conversation as text, with the template's markers around the model's turns.
        encoded: The conversation as tokens.
        turn_ends: The tokens that may end a turn.
        syntax: The native tool language, if there is one.
    """
    ending = re.compile(rf"(?:{'|'.join(map(re.escape, turn_ends))})*\s*\Z")
    borders, parts = [0], [_PROMPT]  # the character at which each part begins
    for begin, end in rendered.supervised_spans:
        turn = rendered.text[begin:end]
        match = ending.search(turn)
        said = turn[: match.start()] if match else turn
        for first, _, part in (syntax.split_turn if syntax else split_turn)(said):
            borders.append(begin + first)
            parts.append(TURN_PARTS.index(part))
        borders += [begin + len(said), end]
        parts += [_TAG, _PROMPT]
    ends = [*encoded.starts[1:], len(rendered.text)]
    found = []
    for token in (token for first, last in encoded.supervised_spans for token in range(first, last)):
        first = bisect_right(borders, encoded.starts[token]) - 1
        touched = parts[first : max(first + 1, bisect_left(borders, ends[token]))]
        found.append(next((part for part in touched if part not in (_TAG, _PROMPT)), touched[0]))
    return found
