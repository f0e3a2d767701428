"""Key-value caches for generation: one for prefilling prompts, one for batched decoding.

The keys, and likewise the values, of a layer are in a buffer ``(rows, heads, capacity, width)``, so that a step copies
the new positions only. In a batch, rows end at the same position::

    row 0   . . . . a b c d e _ _ _        .  padding, masked
    row 1   a b c f g h i j k _ _ _        _  room for the tokens to come
    row 2   . . . . . . a b c _ _ _
            └ offset        └ length

Positions before ``offset`` are no longer stored: they are outside the sliding window, or padding in every row.
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
        self.buffers: tuple[Tensor, ...] = ()  # keys and values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate buffers for the rows, heads and widths of these keys and values."""
        self.buffers = tuple(_allocate(states, self.capacity) for states in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append positions ``(rows, heads, new, width)``; returns the stored keys and values."""
        num_new = key_states.shape[2]
        self._make_room(num_new)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self.length - self.offset, self.length - self.offset + num_new
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self.length += num_new
        keys, values = self.buffers if self.with_room else (buffer[:, :, :end] for buffer in self.buffers)
        return keys, values

    def get_seq_length(self) -> int:
        """The number of positions so far, stored or not."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of positions that the next update returns, and the index of the first of them."""
        self._make_room(query_length)
        size = self.capacity if self.with_room else self.length + query_length - self.offset
        return size, self.offset

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        self.buffers = tuple(buffer.repeat_interleave(repeats, dim=0) for buffer in self.buffers)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows, in place: row ``indices[i]``, which is not before row ``i``, becomes row ``i``."""
        rows, num_stored = indices.tolist(), self.length - self.offset
        for buffer in self.buffers:
            for target, source in enumerate(rows):
                if target != source:
                    buffer[target, :, :num_stored] = buffer[source, :, :num_stored]
        self.buffers = tuple(buffer[: len(rows)] for buffer in self.buffers)

    def drop_before(self, position: int) -> None:
        """Stop storing positions that are padding in every row, if that saves enough to pay for the copy."""
        num_dropped = position - self.offset
        if num_dropped >= _BLOCK:
            self._reallocate(self.capacity - num_dropped, num_dropped)

    def _make_room(self, num_new: int) -> None:
        missing = self.length - self.offset + num_new - self.capacity
        if missing <= 0 or not self.is_initialized:
            self.capacity += max(0, missing)
        elif self.window is not None and self.length - self.offset >= self.window - 1 + missing:
            self._reallocate(self.capacity, self.length - self.offset - (self.window - 1))
        else:
            self._reallocate(self.capacity + missing + _BLOCK, 0)

    def _reallocate(self, capacity: int, num_dropped: int) -> None:
        """Move all but the first stored positions to the front of buffers of another capacity."""
        num_stored = self.length - self.offset
        old, self.buffers = self.buffers, tuple(_allocate(buffer, capacity) for buffer in self.buffers)
        for buffer, previous in zip(self.buffers, old, strict=True):
            buffer[:, :, : num_stored - num_dropped] = previous[:, :, num_dropped:num_stored]
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
    def for_batch(cls, windows: Sequence[int | None], length: int, room: int, on_cpu: bool) -> BufferedCache:
        """A cache for rows of a length, to be filled by :meth:`copy_row`.

        Args:
            windows: For each layer the size of its sliding window, or None.
            length: Number of positions of the longest row.
            room: Number of positions to allocate for new tokens; more are added as needed.
            on_cpu: Whether the model runs on a CPU.
        """
        layers = []
        for window in windows:
            stored = length if window is None else min(length, window - 1)
            # transformers makes no mask for a query at position 0, so there must not be anything to hide.
            layer = BufferedLayer(stored + min(room, _BLOCK), window, with_room=on_cpu and length > 0)
            layer.length, layer.offset = length, length - stored
            layers.append(layer)
        return cls(layers=layers)

    def crop(self, length: int) -> None:
        """Keep the first positions."""
        for layer in self.layers:
            layer.length = length

    def copy_row(self, prompt: BufferedCache, row: int, num_rows: int) -> None:
        """Fill a row from the cache of one prompt, on the right.

        Args:
            prompt: The cache with the prompt alone.
            row: Index of the row.
            num_rows: Number of rows of this cache.
        """
        for layer, single in zip(self.layers, prompt.layers, strict=True):
            if not layer.is_initialized:
                keys, values = (buffer.expand(num_rows, -1, -1, -1) for buffer in single.buffers)
                layer.lazy_initialization(keys, values)
            end = layer.length - layer.offset
            num_copied = min(end, single.length)
            for buffer, source in zip(layer.buffers, single.buffers, strict=True):
                buffer[row, :, end - num_copied : end] = source[0, :, single.length - num_copied : single.length]


def _allocate(states: Tensor, capacity: int) -> Tensor:
    """An empty buffer ``(rows, heads, capacity, width)`` for tensors like this one."""
    rows, heads, _, width = states.shape
    return states.new_zeros(rows, heads, capacity, width)


def sliding_windows(config: Any) -> list[int | None]:
    """For each layer of a model the size of its sliding window, or None."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return [config.sliding_window if kind == "sliding_attention" else None for kind in kinds]


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
