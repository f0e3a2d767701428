"""Packing: complete conversations side by side in rows of one length.

Conversations are never split and never see each other: position ids restart at 0 in each, which is how the attention of
transformers recognizes documents, and no label crosses a document boundary.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def plan_packs(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put documents into few packs: best-fit decreasing.

    The longest document goes first, each into the fullest pack that still has room (Johnson 1973; at most 11/9 of the
    optimal number of packs, plus one).

    Args:
        lengths: Tokens of each document; documents of equal length keep their order.
        capacity: Tokens that a pack holds.

    Returns:
        For each pack, the indices of its documents.

    Raises:
        ValueError: If a document is longer than a pack.

    Example:
        >>> plan_packs([3, 5, 2, 4], capacity=7)
        [[1, 2], [3, 0]]
    """
    packs: list[list[int]] = []
    open_packs = _OpenPacks()
    for document in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[document]
        if length > capacity:
            raise ValueError(f"document {document} has {length} tokens, but a pack holds {capacity}")
        pack, room = open_packs.pop_fullest(length) or (len(packs), capacity)
        if pack == len(packs):
            packs.append([])
        packs[pack].append(document)
        open_packs.push(pack, room - length)
    return packs


class _OpenPacks:
    """Packs by the room that is left in them; of equally full packs, the last one pushed is popped first."""

    def __init__(self) -> None:
        self._packs_by_room: dict[int, list[int]] = {}
        self._rooms: list[int] = []  # the keys of `_packs_by_room`, sorted

    def push(self, pack: int, room: int) -> None:
        if room not in self._packs_by_room:
            self._packs_by_room[room] = []
            insort(self._rooms, room)
        self._packs_by_room[room].append(pack)

    def pop_fullest(self, length: int) -> tuple[int, int] | None:
        """Remove the fullest pack with room for a document; returns its number and room, or None."""
        index = bisect_left(self._rooms, length)
        if index == len(self._rooms):
            return None
        room = self._rooms[index]
        pack = self._packs_by_room[room].pop()
        if not self._packs_by_room[room]:
            del self._packs_by_room[room], self._rooms[index]
        return pack, room
