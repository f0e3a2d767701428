"""Contamination: questions of a benchmark that are in the training data, found by their text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from lightning.pytorch.utilities import rank_zero_info

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.bfcl import PREFIX
from fc_lightning.data.prepare import Prepared
from fc_lightning.data.sources import Source
from fc_lightning.data.splitting import normalized_words, question

_MAX_NAMES = 20  # of conversations that the message lists


def without_trained_questions(prepared: Prepared, split: str, sources: Mapping[str, Sequence[Source]]) -> Prepared:
    """Skip the prompts of a benchmark whose questions are in the training data, and report which.

    Case, punctuation and whitespace are ignored. Only sources ``bfcl:…`` are a benchmark; in a held-out set of one's
    own, `audit` reports what is in training.

    Args:
        prepared: The prepared split.
        split: Its name.
        sources: The sources of each split.
    """
    benchmark = [source for source in sources[split] if source.path.startswith(PREFIX)]
    if not benchmark or sources[split] is sources["train"]:  # or a held-out fraction of it
        return prepared
    known = {text for _, text in _questions(sources["train"])}
    trained = {name for name, text in _questions(benchmark) if text in known}
    if not trained:
        return prepared
    places = [place for place, name in enumerate(prepared.prompts["id"]) if name not in trained]
    first = ", ".join(sorted(trained)[:_MAX_NAMES]) + (", …" if len(trained) > _MAX_NAMES else "")
    rank_zero_info(f"{split}: {len(trained):,} questions are also in `data.train` and are skipped: {first}")
    return replace(prepared, prompts=prepared.prompts.select(places))


def _questions(sources: Sequence[Source]) -> Iterator[tuple[str, str]]:
    """Id and question of each readable row."""
    for source in sources:
        for place, row in source.rows():
            conversation = source.read(row, place)
            if isinstance(conversation, Conversation):
                yield conversation.id, normalized_words(question(conversation))
