"""Key-value caches for generation: one for prefilling prompts, one for batched decoding.

The keys, and likewise the values, of a layer are in a buffer ``(rows, heads, capacity, width)``, so that a step copies
the new positions only. In a batch, rows end at the same position::

    row 0   . . . . a b c d e _ _ _        .  padding or what an earlier row has left, masked
    row 1   a b c f g h i j k _ _ _        _  room for the tokens to come
    row 2   . . . . . . a b c _ _ _
            └ offset        └ length

Positions before ``offset`` are not stored: they are outside the sliding window, or padding in every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

# Positions that buffers grow by, and by which they shrink at least.
_BLOCK = 32


class BufferedLayer(DynamicLayer):
    """Keys and values of one layer.

    Args:
        capacity: Number of positions to allocate.
        window: Size of the sliding window; older positions are dropped when there is no room. None keeps all.
        with_room: Whether to return the room too, for the mask to hide. On a CPU, products of half-precision matrices
            copy their inputs unless these are contiguous, which costs more than the masked positions.
    """

    def __init__(self, capacity: int, window: int | None = None, with_room: bool = False):
        super().__init__()
        self.is_sliding = window is not None
        self.capacity = capacity
        self.window = window
        self.with_room = with_room
        self.offset = 0
        self.length = 0
        self.num_rows = 0  # active rows, the first ones of the buffers
        self.buffers: tuple[Tensor, ...] = ()  # keys and values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate buffers for the rows, heads and widths of these keys and values."""
        self.num_rows = len(key_states)
        self.buffers = tuple(_allocate(states, self.num_rows, self.capacity) for states in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append positions ``(rows, heads, new, width)``; returns the stored keys and values."""
        num_new = key_states.shape[2]
        self._make_room(num_new)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self.length - self.offset, self.length - self.offset + num_new
        active = [buffer[: self.num_rows] for buffer in self.buffers]
        for buffer, states in zip(active, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self.length += num_new
        keys, values = active if self.with_room else (buffer[:, :, :end] for buffer in active)
        return keys, values

    def get_seq_length(self) -> int:
        """The number of positions so far, stored or not."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of positions that the next update returns, and the index of the first of them."""
        self._make_room(query_length)
        size = self.capacity if self.with_room else self.length + query_length - self.offset
        return size, self.offset

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows, in place: row ``indices[i]``, which is not before row ``i``, becomes row ``i``."""
        rows, num_stored = indices.tolist(), self.length - self.offset
        for buffer in self.buffers:
            for target, source in enumerate(rows):
                if target != source:
                    buffer[target, :, :num_stored] = buffer[source, :, :num_stored]
        self.num_rows = len(rows)

    def arrange(self, num_rows: int, num_allocated: int, start: int, like: Sequence[Tensor]) -> None:
        """Make room for rows that are added, and stop storing what is padding in every row if that pays for the copy.

        Args:
            num_rows: Number of active rows from now on.
            num_allocated: Number of rows to allocate, if more are needed.
            start: First position of any row.
            like: Keys and values of one row; empty if there are none yet, then the first update allocates.
        """
        num_dropped = start - self.offset
        if num_dropped < 0 and self.window is not None:
            num_dropped = min(0, max(num_dropped, self.length - self.window + 1 - self.offset))
        num_allocated = max(num_rows, num_allocated)
        if not self.is_initialized and like:  # nothing is stored so far
            self.capacity -= num_dropped
            self.offset += num_dropped
            self.lazy_initialization(*(states.expand(num_rows, -1, -1, -1) for states in like))
        elif self.is_initialized and (not 0 <= num_dropped < _BLOCK or num_rows > len(self.buffers[0])):
            self._reallocate(self.capacity - num_dropped, num_dropped, num_allocated)
        self.num_rows = num_rows

    def _make_room(self, num_new: int) -> None:
        missing = self.length - self.offset + num_new - self.capacity
        if missing <= 0 or not self.is_initialized:
            self.capacity += max(0, missing)
        elif self.window is not None and self.length - self.offset >= self.window - 1 + missing:
            self._reallocate(self.capacity, self.length - self.offset - (self.window - 1), self.num_rows)
        else:
            self._reallocate(self.capacity + missing + _BLOCK, 0, self.num_rows)

    def _reallocate(self, capacity: int, num_dropped: int, num_allocated: int) -> None:
        """Move the active rows into other buffers, without the first positions, or with padding before them if < 0."""
        num_stored, first = self.length - self.offset, max(0, num_dropped)
        old, self.buffers = self.buffers, tuple(_allocate(buffer, num_allocated, capacity) for buffer in self.buffers)
        for buffer, previous in zip(self.buffers, old, strict=True):
            kept = previous[: self.num_rows, :, first:num_stored]
            buffer[: self.num_rows, :, first - num_dropped : num_stored - num_dropped] = kept
        self.capacity = capacity
        self.offset += num_dropped


class BufferedCache(Cache):
    """One :class:`BufferedLayer` per layer of a model."""

    layers: list[BufferedLayer]

    @classmethod
    def for_prompt(cls, num_layers: int, capacity: int) -> BufferedCache:
        """A cache for one prompt after the other, which keeps all positions, so that it can be cropped anywhere."""
        return cls(layers=[BufferedLayer(capacity) for _ in range(num_layers)])

    @classmethod
    def for_batch(cls, windows: Sequence[int | None], length: int, on_cpu: bool) -> BufferedCache:
        """A cache without rows, to be filled by :meth:`add_row`.

        Args:
            windows: For each layer the size of its sliding window, or None.
            length: The position where rows end, at least the number of tokens that the longest row stores.
            on_cpu: Whether the model runs on a CPU.
        """
        layers = []
        for window in windows:
            # transformers makes no mask for a query at position 0, so there must not be anything to hide.
            layer = BufferedLayer(_BLOCK, window, with_room=on_cpu and length > 0)
            layer.length = layer.offset = length
            layers.append(layer)
        return cls(layers=layers)

    def crop(self, length: int) -> None:
        """Keep the first positions."""
        for layer in self.layers:
            layer.length = length

    def arrange(self, num_rows: int, num_allocated: int, start: int, like: BufferedCache) -> None:
        """See :meth:`BufferedLayer.arrange`; ``like`` has the heads and widths of each layer."""
        for layer, other in zip(self.layers, like.layers, strict=True):
            layer.arrange(num_rows, num_allocated, start, other.buffers)

    def add_row(self, prompt: BufferedCache, row: int) -> None:
        """Copy a prompt into a row for which room is reserved, on the right."""
        for layer, single in zip(self.layers, prompt.layers, strict=True):
            end = layer.length - layer.offset
            num_copied = min(end, single.length)
            for buffer, source in zip(layer.buffers, single.buffers, strict=True):
                buffer[row, :, end - num_copied : end] = source[0, :, single.length - num_copied : single.length]


def _allocate(states: Tensor, num_rows: int, capacity: int) -> Tensor:
    """An empty buffer ``(rows, heads, capacity, width)`` for tensors like this one."""
    _, heads, _, width = states.shape
    return states.new_zeros(num_rows, heads, capacity, width)


def swap_remove(num_rows: int, ended: Sequence[int]) -> Tensor:
    """The new order of rows when some have ended: the last active rows take their places, the others stay.

    Example:
        >>> swap_remove(6, [1, 3]).tolist()
        [0, 4, 2, 5]
    """
    num_active = num_rows - len(ended)
    gone = set(ended)
    movers = iter([row for row in range(num_active, num_rows) if row not in gone])
    return torch.tensor([next(movers) if row in gone else row for row in range(num_active)], dtype=torch.long)
