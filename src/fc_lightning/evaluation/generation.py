"""Batched generation: shared beginnings of prompts are computed once, and rows that have ended are dropped.

1. Prefill. Prompts are read one by one in sorted order, each from where it begins to differ from the previous one:
   held-out rows share long lists of tools, and the turns of a conversation share its history. The last token of a
   prompt is left for decoding. Keys and values are right-aligned in one cache (:mod:`.kv_cache`)::

       prompt 0   . . . . a b c d │ e        .  padding, masked
       prompt 1   a b c f g h i j │ k        │  end of the cache after prefill; the last token of each
       prompt 2   . . . . . . a b │ c           prompt is the first input of decoding

2. Decoding, greedy or by sampling, in which a row leaves the batch in the step in which it ends.

Beams, penalties and other settings, other kinds of cache and sharded models are left to transformers' ``generate``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from fc_lightning.evaluation.greedy_head import GreedyHead
from fc_lightning.evaluation.kv_cache import BufferedCache, sliding_windows, swap_remove

# Settings that the loop here follows, or that mean nothing to it.
_SUPPORTED = {"max_new_tokens", "min_new_tokens", "num_beams", "num_return_sequences", "use_cache"}
_SUPPORTED |= {"do_sample", "temperature", "top_k", "top_p", "min_p"}
_SUPPORTED |= {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "cache_implementation"}
_SUPPORTED |= {"_from_model_config", "output_attentions", "output_hidden_states", "output_scores", "output_logits"}
_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None}  # transformers' values where none is set

Output = tuple[list[int], bool]  # new ids without the one that ends the turn, and whether there was one


class Constraint(Protocol):
    """A logits processor that keeps each row to a grammar and is notified which rows are active."""

    def set_rows(self, rows: Sequence[int]) -> None:
        """Set the rows of the following calls, as indices into all rows."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Set the scores ``(rows, vocabulary)`` of forbidden tokens to minus infinity, given the ids so far."""


def ignore_step(num_ended: int) -> None:
    """Do nothing."""


@torch.inference_mode()
def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    settings: Mapping[str, Any],
    end_ids: Sequence[int],
    pad_id: int,
    constraint: Constraint | None = None,
    synced_gpus: bool = False,
    on_step: Callable[[int], None] = ignore_step,
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
        on_step: Called after each prompt that was read and each step of decoding, with the number of rows that ended.
            What is left to transformers does not call it.

    Returns:
        For each prompt (n in a row) the new ids without the one that ends the turn, and whether there was one.
    """
    causal = cast(Any, model)
    settings = {**settings, "eos_token_id": list(end_ids), "pad_token_id": pad_id, "use_cache": True}
    choose = _token_choice(causal, settings)
    if synced_gpus or choose is None or not _has_plain_cache(causal):
        return _generate_padded(causal, prompts, settings, constraint, synced_gpus)
    cache = _prefill(causal, prompts, settings["max_new_tokens"], on_step)
    num_copies = settings.get("num_return_sequences", 1)
    for layer in cache.layers if num_copies > 1 else []:
        layer.batch_repeat_interleave(num_copies)
    rows = [prompt for prompt in prompts for _ in range(num_copies)]
    return _decode(causal, rows, cache, settings, choose, constraint, on_step)


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


def _token_choice(causal: Any, settings: Mapping[str, Any]) -> Callable[[Tensor], Tensor] | None:
    """How the next ids ``(rows,)`` are chosen from scores ``(rows, vocabulary)``; None if that is not done here."""
    defaults = causal.generation_config.to_diff_dict() if causal.generation_config else {}
    chosen = {name: value for name, value in {**defaults, **settings}.items() if value is not None}
    has_arguments = {"position_ids", "logits_to_keep"} <= inspect.signature(causal.forward).parameters.keys()
    if not has_arguments or not chosen.keys() <= _SUPPORTED or chosen.get("num_beams", 1) > 1:
        return None
    return _sampling({**_SAMPLING, **chosen}) if chosen.get("do_sample") else _argmax


def _sampling(settings: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    """Draw ids as transformers does."""
    warpers = LogitsProcessorList()
    if settings["temperature"] != 1:
        warpers.append(TemperatureLogitsWarper(settings["temperature"]))
    if settings["top_k"]:
        warpers.append(TopKLogitsWarper(settings["top_k"]))
    if settings["top_p"] < 1:
        warpers.append(TopPLogitsWarper(settings["top_p"]))
    if settings["min_p"] is not None:
        warpers.append(MinPLogitsWarper(settings["min_p"]))
    no_ids = torch.empty(0, dtype=torch.long)  # these processors look at scores alone

    def sample(scores: Tensor) -> Tensor:
        return torch.multinomial(warpers(no_ids, scores).softmax(-1), num_samples=1)[:, 0]

    return sample


def _prefill(causal: Any, prompts: Sequence[Sequence[int]], room: int, on_step: Callable[[int], None]) -> BufferedCache:
    """Read all but the last token of each prompt into a cache, which has room for more tokens."""
    decoder, device = causal.get_decoder(), next(causal.parameters()).device
    windows = sliding_windows(causal.config.get_text_config())
    longest = max(map(len, prompts)) - 1
    cache = BufferedCache.for_batch(windows, longest, room, on_cpu=device.type == "cpu")
    prompt = BufferedCache.for_prompt(len(windows), longest)
    previous: Sequence[int] = []
    for row in sorted(range(len(prompts)), key=lambda row: list(prompts[row])):
        # 1) Compute the positions that the previous prompt does not have.
        ids = prompts[row][:-1]
        num_shared = shared_length(previous, ids)
        prompt.crop(num_shared)
        if num_shared < len(ids):
            decoder(input_ids=torch.tensor([ids[num_shared:]], device=device), past_key_values=prompt, use_cache=True)
        # 2) Copy the row into place, on the right.
        if ids:
            cache.copy_row(prompt, row, len(prompts))
        previous = ids
        on_step(0)
    return cache


def _decode(
    causal: Any,
    prompts: Sequence[Sequence[int]],
    cache: BufferedCache,
    settings: Mapping[str, Any],
    choose: Callable[[Tensor], Tensor],
    constraint: Constraint | None,
    on_step: Callable[[int], None],
) -> list[Output]:
    """Choose the next token of each row until every row has ended or reached the limit."""
    limit, minimum = settings["max_new_tokens"], settings.get("min_new_tokens") or 0
    device = next(causal.parameters()).device
    end_ids = torch.tensor(settings["eos_token_id"], device=device)
    ids, mask = _pad_left(prompts, settings["pad_token_id"], device, room=limit)  # (rows, longest + limit)
    longest = ids.shape[1] - limit
    padding = [longest - len(prompt) for prompt in prompts]
    outputs: list[Output] = [([], False)] * len(prompts)
    active_rows = list(range(len(prompts)))
    if constraint is not None:
        constraint.set_rows(active_rows)
    # For few rows the rounded copy costs more than it saves.
    plain = choose is _argmax and constraint is None and not minimum and len(prompts) > 4
    head = GreedyHead.of(causal.get_output_embeddings()) if plain else None
    for end in range(longest, longest + limit):
        # 1) Take a step: the last token of each active row goes in, the next one comes out.
        positions = torch.tensor([[end - 1 - padding[row]] for row in active_rows], device=device)
        inputs = {
            "input_ids": ids[:, end - 1 : end],
            "attention_mask": mask[:, :end],
            "position_ids": positions,
            "past_key_values": cache,
            "use_cache": True,
        }
        if head is not None:
            ids[:, end] = head.best(causal.get_decoder()(**inputs).last_hidden_state[:, -1])
        else:
            scores = causal(**inputs, logits_to_keep=1).logits[:, -1].float()  # (rows, vocabulary)
            if end - longest < minimum:
                scores[:, end_ids] = -torch.inf
            if constraint is not None:
                scores = constraint(ids[:, :end], scores)
            ids[:, end] = choose(scores)
        # 2) Take out the rows that have ended.
        ended = torch.isin(ids[:, end], end_ids).nonzero().flatten().tolist()
        on_step(len(ended))
        if not ended:
            continue
        for place in ended:
            outputs[active_rows[place]] = (ids[place, longest:end].tolist(), True)
        order = swap_remove(len(active_rows), ended)
        active_rows = [active_rows[place] for place in order.tolist()]
        if not active_rows:
            break
        ids, mask = ids[order.to(device)], mask[order.to(device)]
        for layer in cache.layers:
            layer.batch_select_indices(order)
            layer.drop_before(min(padding[row] for row in active_rows))
        if constraint is not None:
            constraint.set_rows(active_rows)
    for place, row in enumerate(active_rows):
        outputs[row] = (ids[place, longest:].tolist(), False)
    return outputs


def _argmax(scores: Tensor) -> Tensor:
    """The index of the largest score of each row; NumPy's is seven times as fast as torch's on a CPU."""
    if scores.device.type == "cpu":
        return torch.from_numpy(scores.numpy().argmax(-1))
    return scores.argmax(-1)


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


def _pad_left(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device, room: int = 0
) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both ``(rows, longest + room)``; the room on the right is attended to."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    ids = [[pad_id] * pad + list(prompt) + [pad_id] * room for pad, prompt in zip(padding, prompts, strict=True)]
    mask = [[0] * pad + [1] * (longest - pad + room) for pad in padding]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _until_end(ids: list[int], end_ids: Sequence[int]) -> Output:
    end = next((index for index, token in enumerate(ids) if token in end_ids), None)
    return (ids, False) if end is None else (ids[:end], True)
