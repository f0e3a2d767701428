"""Batched generation: shared beginnings of prompts are computed once, and rows that have ended are dropped.

transformers' ``generate`` does the decoding, with any of its settings. This module does what surrounds it, in two
phases.

1. Prefill. Prompts are read one by one in sorted order, each from where it begins to differ from the previous one:
   held-out rows share long lists of tools, and the turns of a conversation share its history. The last token of a
   prompt is left for decoding. Keys and values are right-aligned in one cache per layer::

       prompt 0   . . . . a b c d │ e        .  padding, masked
       prompt 1   a b c f g h i j │ k        │  end of the cache after prefill; the last token of each
       prompt 2   . . . . . . a b │ c           prompt is the first input of decoding

2. Decoding in legs. All rows are decoded together until a quarter of them have ended; the remaining rows are compacted
   into a smaller cache, and the next leg begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StoppingCriteria

# A leg ends once one in this many of its rows has ended: compacting the cache then pays.
_LEG = 4

Output = tuple[list[int], bool]  # new ids without the one that ends the turn, and whether there was one


class Constraint(Protocol):
    """A logits processor that keeps each row to a grammar and is notified which rows a leg has."""

    def start_leg(self, rows: Sequence[int]) -> None:
        """Set the rows of the following calls, as indices into all rows."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Set the scores ``(rows, vocabulary)`` of forbidden tokens to minus infinity, given the ids so far."""


@torch.inference_mode()
def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    settings: Mapping[str, Any],
    end_ids: Sequence[int],
    pad_id: int,
    constraint: Constraint | None = None,
    synced_gpus: bool = False,
) -> list[Output]:
    """Generate a continuation of each prompt.

    Args:
        model: A causal language model of transformers, not a wrapper around one.
        prompts: Token ids of each prompt.
        settings: Fields of transformers' ``GenerationConfig``, including ``max_new_tokens``. With
            ``num_return_sequences: n`` each prompt is continued n times.
        end_ids: Ids that end a turn.
        pad_id: Id that pads shorter rows, on the left.
        constraint: Keeps each row to a grammar; not with beams.
        synced_gpus: Whether all ranks must take the same number of steps, as a sharded model requires.

    Returns:
        For each prompt (n in a row) the new ids without the one that ends the turn, and whether there was one.
    """
    causal = cast(Any, model)
    settings = {**settings, "eos_token_id": list(end_ids), "pad_token_id": pad_id, "use_cache": True}
    if synced_gpus or settings.get("num_beams", 1) > 1 or not _has_plain_cache(causal):
        return _generate_padded(causal, prompts, settings, constraint, synced_gpus)
    num_copies = settings.pop("num_return_sequences", 1)
    cache = _prefill(causal, prompts)
    for layer in cache.layers if num_copies > 1 else []:
        layer.batch_repeat_interleave(num_copies)
    rows = [prompt for prompt in prompts for _ in range(num_copies)]
    return _generate_in_legs(causal, rows, cache, settings, constraint)


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of leading ids that two prompts have in common."""
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _has_plain_cache(causal: Any) -> bool:
    """Whether the cache holds keys and values of each position and nothing else, so that prompts can share a prefix."""
    config = causal.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    shares_layers = getattr(config, "num_kv_shared_layers", 0)
    return kinds <= {"full_attention", "sliding_attention"} and not shares_layers and not causal._is_stateful


def _prefill(causal: Any, prompts: Sequence[Sequence[int]]) -> DynamicCache:
    """Keys and values of all but the last token of each prompt, ``(rows, heads, longest - 1, width)`` per layer.

    Sliding layers keep all positions too (the mask hides those out of the window), so a prefix can be cut anywhere.
    """
    decoder, device = causal.get_decoder(), next(causal.parameters()).device
    longest = max(map(len, prompts)) - 1
    padded: list[tuple[Tensor, Tensor]] = []  # keys and values of all rows, for each layer
    previous: Sequence[int] = []
    cache = DynamicCache()
    for row in sorted(range(len(prompts)), key=lambda row: list(prompts[row])):
        # 1) Compute the positions that the previous prompt does not have.
        ids = prompts[row][:-1]
        num_shared = shared_length(previous, ids)
        cache = _crop(cache, num_shared)
        if num_shared < len(ids):
            decoder(input_ids=torch.tensor([ids[num_shared:]], device=device), past_key_values=cache, use_cache=True)
        # 2) Copy the row into place, on the right.
        for number, layer in enumerate(cache.layers):
            if number == len(padded):
                shape = (len(prompts), layer.keys.shape[1], longest)
                padded.append(tuple(part.new_zeros(*shape, part.shape[3]) for part in (layer.keys, layer.values)))
            for all_rows, one_row in zip(padded[number], (layer.keys, layer.values), strict=True):
                all_rows[row, :, longest - len(ids) :] = one_row[0]
        previous = ids
    return _cache_of(padded)


def _crop(cache: DynamicCache, length: int) -> DynamicCache:
    """The first positions of a cache."""
    if length == 0:
        return DynamicCache()
    return _cache_of([(layer.keys[:, :, :length], layer.values[:, :, :length]) for layer in cache.layers])


def _cache_of(layers: Sequence[tuple[Tensor, Tensor]]) -> DynamicCache:
    cache = DynamicCache()
    for number, (keys, values) in enumerate(layers):
        cache.update(keys, values, number)
    return cache


def _generate_in_legs(
    causal: Any,
    prompts: Sequence[Sequence[int]],
    cache: DynamicCache,
    settings: dict[str, Any],
    constraint: Constraint | None,
) -> list[Output]:
    """Decode until every row has ended or reached the limit; each leg has the rows that are still active."""
    end_ids, limit = settings["eos_token_id"], settings["max_new_tokens"]
    minimum = settings.get("min_new_tokens") or 0
    device = next(causal.parameters()).device
    ids, mask = _pad_left(prompts, settings["pad_token_id"], device)  # (rows, longest)
    longest = ids.shape[1]
    active_rows = list(range(len(prompts)))
    outputs: list[Output] = [([], False)] * len(prompts)
    while active_rows:
        # 1) Decode a leg.
        if constraint is not None:
            constraint.start_leg(active_rows)
        num_generated = ids.shape[1] - longest
        budget = {"max_new_tokens": limit - num_generated, "min_new_tokens": max(0, minimum - num_generated)}
        leg = causal.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=GenerationConfig(**{**settings, **budget, "return_dict_in_generate": True}),
            stopping_criteria=[_EndOfLeg(end_ids, device)],
            logits_processor=LogitsProcessorList([] if constraint is None else [constraint]),
        )
        # 2) Take the rows that have ended; at the limit, all of them.
        new_ids = leg.sequences[:, longest:].tolist()
        at_limit = len(new_ids[0]) >= limit
        remaining = []
        for place, row in enumerate(active_rows):
            outputs[row] = _until_end(new_ids[place], end_ids)
            if not at_limit and not outputs[row][1]:
                remaining.append(place)
        # 3) Compact the others.
        active_rows = [active_rows[place] for place in remaining]
        selected = torch.tensor(remaining, device=device, dtype=torch.long)
        cache = leg.past_key_values
        for layer in cache.layers:
            layer.batch_select_indices(selected)
        mask = nn.functional.pad(mask, (0, leg.sequences.shape[1] - ids.shape[1]), value=1)[selected]
        ids = leg.sequences[selected]
    return outputs


class _EndOfLeg(StoppingCriteria):
    """Ends a leg once enough of its rows have ended their turn; no row has when it begins."""

    def __init__(self, end_ids: Sequence[int], device: torch.device):
        self.end_ids = torch.tensor(end_ids, device=device)
        self.ended: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Whether to end the leg: ``(rows,)``, the same for all."""
        ended = torch.isin(input_ids[:, -1], self.end_ids)
        self.ended = ended if self.ended is None else self.ended | ended
        enough = self.ended.sum() * _LEG >= len(input_ids)
        return enough.expand(len(input_ids))


def _generate_padded(
    causal: Any,
    prompts: Sequence[Sequence[int]],
    settings: dict[str, Any],
    constraint: Constraint | None,
    synced_gpus: bool,
) -> list[Output]:
    """Leave everything to transformers, in one call: for beams, for other kinds of cache, and for sharded models."""
    ids, mask = _pad_left(prompts, settings["pad_token_id"], next(causal.parameters()).device)
    sequences = causal.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=GenerationConfig(**settings),
        logits_processor=LogitsProcessorList([] if constraint is None else [constraint]),
        synced_gpus=synced_gpus,
    )
    return [_until_end(row, settings["eos_token_id"]) for row in sequences[:, ids.shape[1] :].tolist()]


def _pad_left(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both ``(rows, longest)``."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def _until_end(ids: list[int], end_ids: Sequence[int]) -> Output:
    end = next((index for index, token in enumerate(ids) if token in end_ids), None)
    return (ids, False) if end is None else (ids[:end], True)
