"""Generation of many prompts: nothing is computed twice, nothing for padding, nothing for turns that have ended.

transformers' ``generate`` does the generating, with any of its settings. Here stands what surrounds it: the prompts are
read in one by one, each from where it begins to differ from the one before it (held-out rows share long lists of
tools, and the turns of a conversation its history); the rows are then generated together, in legs, and those that have
ended their turn do not go into the next leg.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StoppingCriteria

# A leg ends when one in so many of its rows has ended its turn: what is left is then worth packing together.
_LEG = 4

Output = tuple[list[int], bool]  # new ids without the one that ends the turn, and whether there was one


class Constraint(Protocol):
    """Keeps rows to a grammar while they are generated: a logits processor that is told which rows a leg has."""

    def start_leg(self, rows: Sequence[int]) -> None:
        """The rows of the coming calls, by their number among all."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``(rows, vocabulary)`` after the ids so far, what is forbidden at minus infinity."""


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
        model: A causal language model, or a PeftModel.
        prompts: Their ids.
        settings: Fields of transformers' ``GenerationConfig``, ``max_new_tokens`` among them. With
            ``num_return_sequences: n`` each prompt is continued n times.
        end_ids: Ids that end a turn.
        pad_id: What fills up shorter rows, on the left.
        constraint: Keeps each row to a grammar; not with beams.
        synced_gpus: Whether all ranks take equally many steps, as a sharded model asks for.

    Returns:
        For each prompt (n times in a row) the new ids without the one that ends the turn, and whether there was one.
    """
    causal = cast(Any, model.get_base_model() if isinstance(model, PeftModel) else model)
    settings = {**settings, "eos_token_id": list(end_ids), "pad_token_id": pad_id, "use_cache": True}
    if synced_gpus or settings.get("num_beams", 1) > 1 or not _keeps_plain_cache(causal):
        return _generate_padded(causal, prompts, settings, constraint, synced_gpus)
    copies = settings.pop("num_return_sequences", 1)
    cache = _read_in(causal, prompts)
    for layer in cache.layers if copies > 1 else []:
        layer.batch_repeat_interleave(copies)
    rows = [prompt for prompt in prompts for _ in range(copies)]
    return _generate_in_legs(causal, rows, cache, settings, constraint)


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two prompts have in common before they differ."""
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _keeps_plain_cache(causal: Any) -> bool:
    """Whether what the model remembers of a position is its keys and values: then prompts can share a beginning."""
    config = causal.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    sharing = getattr(config, "num_kv_shared_layers", 0)
    return kinds <= {"full_attention", "sliding_attention"} and not sharing and not causal._is_stateful


def _read_in(causal: Any, prompts: Sequence[Sequence[int]]) -> DynamicCache:
    """Keys and values of all but the last token of each prompt, ``(rows, heads, longest - 1, width)`` a layer.

    Sliding layers keep all positions here (the mask hides those out of sight), so that a prompt can be cut anywhere.
    """
    decoder, device = causal.get_decoder(), next(causal.parameters()).device
    longest = max(map(len, prompts)) - 1
    padded: list[tuple[Tensor, Tensor]] = []
    before: Sequence[int] = []
    cache = DynamicCache()
    for row in sorted(range(len(prompts)), key=lambda row: list(prompts[row])):
        ids = prompts[row][:-1]
        shared = shared_length(before, ids)
        cache = _shortened(cache, shared)
        if shared < len(ids):
            decoder(input_ids=torch.tensor([ids[shared:]], device=device), past_key_values=cache, use_cache=True)
        for number, layer in enumerate(cache.layers):
            if number == len(padded):
                shape = (len(prompts), layer.keys.shape[1], longest)
                padded.append(tuple(part.new_zeros(*shape, part.shape[3]) for part in (layer.keys, layer.values)))
            for whole, part in zip(padded[number], (layer.keys, layer.values), strict=True):
                whole[row, :, longest - len(ids) :] = part[0]
        before = ids
    return _cache_of(padded)


def _shortened(cache: DynamicCache, length: int) -> DynamicCache:
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
    """Generate until every row has ended or has all of its tokens; the rows of a leg are those still going."""
    ends, limit = settings["eos_token_id"], settings["max_new_tokens"]
    device = next(causal.parameters()).device
    ids, mask = _left_padded(prompts, settings["pad_token_id"], device)
    longest = ids.shape[1]
    rows = list(range(len(prompts)))
    out: list[Output] = [([], False)] * len(prompts)
    while rows:
        if constraint is not None:
            constraint.start_leg(rows)
        made = ids.shape[1] - longest
        left = {"max_new_tokens": limit - made, "min_new_tokens": max(0, (settings.get("min_new_tokens") or 0) - made)}
        leg = causal.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=GenerationConfig(**{**settings, **left, "return_dict_in_generate": True}),
            stopping_criteria=[_EndOfLeg(ends, device)],
            logits_processor=LogitsProcessorList([] if constraint is None else [constraint]),
        )
        ended = torch.isin(leg.sequences[:, longest:], torch.tensor(ends, device=device)).any(1).tolist()
        last = leg.sequences.shape[1] - longest >= limit
        going = [place for place, end in enumerate(ended) if not end and not last]
        for place, row in enumerate(rows):
            if place not in going:
                out[row] = _until_end(leg.sequences[place, longest:].tolist(), ends)
        rows = [rows[place] for place in going]
        cache, kept = leg.past_key_values, torch.tensor(going, device=device, dtype=torch.long)
        for layer in cache.layers:
            layer.batch_select_indices(kept)
        mask = nn.functional.pad(mask, (0, leg.sequences.shape[1] - ids.shape[1]), value=1)[kept]
        ids = leg.sequences[kept]
    return out


class _EndOfLeg(StoppingCriteria):
    """Stops all rows when enough of them have ended their turn."""

    def __init__(self, ends: Sequence[int], device: torch.device):
        self.ends = torch.tensor(ends, device=device)
        self.ended: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        now = torch.isin(input_ids[:, -1], self.ends)
        self.ended = now if self.ended is None else self.ended | now
        return (self.ended.sum() * _LEG >= len(now)).expand(len(now))


def _generate_padded(
    causal: Any,
    prompts: Sequence[Sequence[int]],
    settings: dict[str, Any],
    constraint: Constraint | None,
    synced_gpus: bool,
) -> list[Output]:
    """Everything by transformers, in one call: for beams, for models that remember more, and for sharded ones."""
    ids, mask = _left_padded(prompts, settings["pad_token_id"], next(causal.parameters()).device)
    out = causal.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=GenerationConfig(**settings),
        logits_processor=LogitsProcessorList([] if constraint is None else [constraint]),
        synced_gpus=synced_gpus,
    )
    return [_until_end(row, settings["eos_token_id"]) for row in out[:, ids.shape[1] :].tolist()]


def _left_padded(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both ``(rows, longest)``."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def _until_end(ids: list[int], end_ids: Sequence[int]) -> Output:
    end = next((index for index, token in enumerate(ids) if token in end_ids), None)
    return (ids, False) if end is None else (ids[:end], True)
