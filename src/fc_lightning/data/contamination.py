"""Contamination: questions of a benchmark that are in the training data, found by their text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.bfcl import PREFIX
from fc_lightning.data.sources import Source
from fc_lightning.data.splitting import normalized_words, question


def trained_questions(benchmark: Sequence[Source], training: Sequence[Source]) -> list[str]:
    """The ids of the benchmark's conversations whose questions are in the training data too.

    Case, punctuation and whitespace are ignored. Only sources ``bfcl:…`` are a benchmark; in a held-out set of one's
    own, `audit` reports what is in training.

    Args:
        benchmark: Sources to evaluate on.
        training: Sources to train on.
    """
    asked = [source for source in benchmark if source.path.startswith(PREFIX)]
    if not asked or not training:
        return []
    known = {text for _, text in _questions(training)}
    return [name for name, text in _questions(asked) if text in known]


def _questions(sources: Sequence[Source]) -> Iterator[tuple[str, str]]:
    """Id and question of each readable row."""
    for source in sources:
        for place, row in source.rows():
            conversation = source.read(row, place)
            if isinstance(conversation, Conversation):
                yield conversation.id, normalized_words(question(conversation))
