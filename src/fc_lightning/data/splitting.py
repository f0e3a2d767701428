"""Train/validation split: holds out a fraction of conversations and keeps near-duplicates in the same split."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.files import DataError

_PERMUTATIONS, _BANDS = 128, 32
_SHINGLE = 5  # bytes
_SIMILAR = 0.6  # Jaccard similarity of the shingles of two near-duplicates, at least
_MAX_TEXT = 10_000  # characters of a text that are compared
_MAX_LEADERS = 32  # members of a band's bucket that are compared with all others in it


def question(conversation: Conversation) -> str:
    """The user's texts of a conversation."""
    return "\n".join(message.content for message in conversation.messages if message.role == "user")


def hold_out(questions: Sequence[str], share: float) -> tuple[list[bool], str]:
    """Choose which conversations are held out.

    The choice depends on the questions, not on their order: the hash of one member decides for a group of
    near-duplicates. If all questions are near-duplicates of one another, only equal ones stay together.

    Returns:
        A flag for each conversation, and a remark if the questions could not be kept apart.

    Raises:
        DataError: If all questions are the same, so that there is nothing to hold out.
    """
    if not share or len(questions) < 2:
        return [False] * len(questions), ""
    groups, remark = near_duplicates(questions), ""
    if len(set(groups)) == 1:
        first_of: dict[str, int] = {}
        groups = [first_of.setdefault(normalized_words(text), index) for index, text in enumerate(questions)]
        remark = (
            f"`data.validation`: all {len(questions):,} questions are near-copies of one another, so held-out rows "
            "resemble training rows; set `data.validation` to separate sources"
        )
    if len(set(groups)) == 1:
        raise DataError(
            f"`data.validation`: all {len(questions):,} questions are the same, so none can be held out; set "
            "`data.validation` to separate sources"
        )
    digests = [hashlib.sha256(normalized_words(question).encode()).digest()[:8] for question in questions]
    smallest: dict[int, bytes] = {}
    for group, digest in zip(groups, digests, strict=True):
        smallest[group] = min(digest, smallest.get(group, digest))
    # The smallest of many hashes is not uniformly distributed; its hash is.
    draws = {group: int.from_bytes(hashlib.sha256(digest).digest()[:8]) for group, digest in smallest.items()}
    held_out = {group for group, draw in draws.items() if draw < share * 2**64}
    if not held_out:  # a small share of few groups
        held_out = {min(draws, key=lambda group: draws[group])}
    if len(held_out) == len(draws):
        held_out.remove(max(draws, key=lambda group: draws[group]))
    return [group in held_out for group in groups], remark


def near_duplicates(texts: Sequence[str]) -> list[int]:
    """Group near-duplicate texts: MinHash signatures (Broder 1997), compared where a band of them agrees.

    Two texts are near-duplicates if they share about 60 % of their five-byte shingles (in a short question, all but one
    word); the relation is transitive. Case, punctuation and whitespace are ignored.

    Returns:
        The group of each text: the index of the group's first text.
    """
    if not texts:
        return []
    signatures, where = np.unique(
        np.stack([_signature(normalized_words(text)) for text in texts]), axis=0, return_inverse=True
    )
    parents = list(range(len(signatures)))

    def root(node: int) -> int:
        while parents[node] != node:
            parents[node] = node = parents[parents[node]]
        return node

    for band in np.split(signatures, _BANDS, axis=1):
        order = np.lexsort(band.T)
        differs = (band[order][1:] != band[order][:-1]).any(axis=1)
        starts = np.flatnonzero(np.concatenate([[True], differs, [True]]))
        crowded = np.flatnonzero(np.diff(starts) > 1)
        for start, end in zip(starts[crowded], starts[crowded + 1], strict=True):
            for first in range(start, min(end - 1, start + _MAX_LEADERS)):
                leader, others = order[first], order[first + 1 : end]
                for other in others[(signatures[others] == signatures[leader]).mean(axis=1) >= _SIMILAR]:
                    parents[root(int(other))] = root(int(leader))
    groups = [root(int(node)) for node in where.ravel()]
    first_of: dict[int, int] = {}
    return [first_of.setdefault(group, index) for index, group in enumerate(groups)]


def normalized_words(text: str) -> str:
    """The lower-case words of the beginning of a text."""
    return " ".join(re.findall(r"\w+", text[:_MAX_TEXT].lower()))


def _signature(text: str) -> np.ndarray:
    """The MinHash signature of a text, ``(permutations,)``: the smallest of its shingles under each hash function."""
    data = np.frombuffer(text.encode().ljust(_SHINGLE, b" "), dtype=np.uint8).astype(np.uint64)
    count = len(data) - _SHINGLE + 1
    shingles = sum((data[nth : nth + count] << np.uint64(8 * nth) for nth in range(1, _SHINGLE)), data[:count])
    # Fibonacci hashing spreads them over 32 bits; each function is then a permutation of these.
    spread = ((shingles * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)).astype(np.uint32)
    return (_MULTIPLIERS[:, None] * spread[None, :] + _OFFSETS[:, None]).min(axis=1)


_random = np.random.default_rng(0)
_MULTIPLIERS = _random.integers(2**31, dtype=np.uint32, size=_PERMUTATIONS) * np.uint32(2) + np.uint32(1)
_OFFSETS = _random.integers(2**32, dtype=np.uint32, size=_PERMUTATIONS)
