"""Packing: whole conversations side by side in rows of one length, and the batch that a model trains on.

Conversations are never split and never see each other: each starts at position 0 again, which is what the attention of
transformers goes by, and no label reaches across a border.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def plan_packs(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put documents into as few packs as a greedy plan can: best-fit decreasing.

    The longest document goes first, each into the fullest pack that still has room (Johnson 1973; at most 11/9 of the
    best plan's packs, plus one).

    Args:
        lengths: Tokens of each document; ties keep their order.
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
    packs_by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys of packs_by_room, sorted
    for document in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[document]
        if length > capacity:
            raise ValueError(f"document {document} has {length} tokens, a pack holds {capacity}")
        nth = bisect_left(rooms, length)
        if nth == len(rooms):
            room = capacity
            pack = len(packs)
            packs.append([])
        else:
            room = rooms[nth]
            pack = packs_by_room[room].pop()
            if not packs_by_room[room]:
                del packs_by_room[room], rooms[nth]
        packs[pack].append(document)
        left = room - length
        if left not in packs_by_room:
            packs_by_room[left] = []
            insort(rooms, left)
        packs_by_room[left].append(pack)
    return packs
