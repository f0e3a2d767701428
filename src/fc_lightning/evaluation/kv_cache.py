"""A key-value cache with room to grow: a step copies the new positions only, and rows that have ended are dropped.

One layer holds the keys, and likewise the values, of all rows in a buffer ``(rows, heads, capacity, width)``::

    row 0   . . . . a b c d e _ _ _        .  padding on the left, masked
    row 1   a b c f g h i j k _ _ _        _  room for the tokens to come
    row 2   . . . . . . a b c _ _ _
            └────── length ─┘

Layers with a sliding window return the positions inside the window only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

# Positions added at a time; a generation of thousands of tokens does not allocate all of them at the start.
_BLOCK = 256


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer.

    Args:
        window: Size of the layer's sliding window, if it has one.
        capacity: Number of positions to allocate at first.
    """

    def __init__(self, window: int | None = None, capacity: int = 0):
        super().__init__()
        self.is_sliding = window is not None
        self.window = window
        self.capacity = capacity
        self.length = 0
        self.num_hidden = 0  # leading positions that are padding in every row
        self.buffers: tuple[Tensor, Tensor]  # keys and values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate buffers for the rows, heads and widths of the first keys and values."""
        self.capacity = max(self.capacity, key_states.shape[2])
        self.buffers = (self._allocate(key_states), self._allocate(value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append positions ``(rows, heads, new, width)``; returns keys and values of all visible positions."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self.length, self.length + key_states.shape[2]
        if end > self.capacity:
            self._reserve(end + _BLOCK)
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = new
        first = self._first_visible()
        self.length = end
        keys, values = (buffer[:, :, first:end] for buffer in self.buffers)
        return keys, values

    def get_seq_length(self) -> int:
        """The number of positions."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of positions that the next update returns, and the index of the first of them."""
        first = self._first_visible()
        return self.length + query_length - first, first

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        keys, values = (buffer.repeat_interleave(repeats, dim=0) for buffer in self.buffers)
        self.buffers = (keys, values)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows, in place: row ``indices[i]``, which is not before row ``i``, becomes row ``i``."""
        rows = indices.tolist()
        for buffer in self.buffers:
            for target, source in enumerate(rows):
                if target != source:
                    buffer[target, :, : self.length] = buffer[source, :, : self.length]
        keys, values = (buffer[: len(rows)] for buffer in self.buffers)
        self.buffers = (keys, values)

    def _first_visible(self) -> int:
        """The first position that a query at the end sees."""
        if self.window is None:
            return self.num_hidden
        return max(self.num_hidden, self.length - self.window + 1)

    def _allocate(self, states: Tensor) -> Tensor:
        rows, heads, _, width = states.shape
        return states.new_zeros(rows, heads, self.capacity, width)

    def _reserve(self, capacity: int) -> None:
        self.capacity = capacity
        grown = (self._allocate(self.buffers[0]), self._allocate(self.buffers[1]))
        for new, old in zip(grown, self.buffers, strict=True):
            new[:, :, : self.length] = old[:, :, : self.length]
        self.buffers = grown


class GrowingCache(Cache):
    """The cache of a model, one :class:`GrowingLayer` per layer.

    Args:
        windows: For each layer, the size of its sliding window, or None.
        capacity: Number of positions to allocate at first.
    """

    layers: list[GrowingLayer]

    def __init__(self, windows: Sequence[int | None], capacity: int):
        super().__init__(layers=[GrowingLayer(window, capacity) for window in windows])

    def crop(self, length: int) -> None:
        """Keep the first positions."""
        for layer in self.layers:
            layer.length = length

    def hide_padding(self, num_hidden: int) -> None:
        """Exclude leading positions, padding in every row, from what layers return."""
        for layer in self.layers:
            layer.num_hidden = num_hidden

    def copy_row(self, source: GrowingCache, row: int, num_rows: int) -> None:
        """Copy the only row of another cache into a row of this one, right-aligned at the end of the capacity.

        Args:
            source: A cache with one row.
            row: Index of the row to fill.
            num_rows: Number of rows of this cache.
        """
        for layer, other in zip(self.layers, source.layers, strict=True):
            if not layer.is_initialized:
                keys, values = (buffer.expand(num_rows, -1, -1, -1) for buffer in other.buffers)
                layer.lazy_initialization(keys, values)
            for buffer, single in zip(layer.buffers, other.buffers, strict=True):
                buffer[row, :, layer.length - other.length : layer.length] = single[0, :, : other.length]


def sliding_windows(config: Any) -> list[int | None]:
    """For each layer of a model, the size of its sliding window, or None."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return [config.sliding_window if kind == "sliding_attention" else None for kind in kinds]


def swap_remove(num_rows: int, ended: Sequence[int]) -> torch.Tensor:
    """The new order of rows when some have ended: the last active rows take their places, the others stay.

    Example:
        >>> swap_remove(6, [1, 3]).tolist()
        [0, 4, 2, 5]
    """
    num_active = num_rows - len(ended)
    gone = set(ended)
    movers = iter([row for row in range(num_active, num_rows) if row not in gone])
    return torch.tensor([next(movers) if row in gone else row for row in range(num_active)], dtype=torch.long)
