"""Batched generation: shared beginnings of prompts are computed once, and rows that end make room for the next prompts.

1. Reading. Prompts are read one by one, each from where it begins to differ from the previous one: held-out rows share
   long lists of tools, and the turns of a conversation share its history. The last token of a prompt is left for
   decoding. Keys and values are right-aligned in one cache (:mod:`.kv_cache`)::

       prompt 0   . . . . a b c d │ e        .  padding, masked
       prompt 1   a b c f g h i j │ k        │  end of the cache; the last token of each prompt
       prompt 2   . . . . . . a b │ c           is the first input of decoding

2. Decoding, greedy or by sampling, in which a row leaves the batch in the step in which it ends. The next prompts are
   read into its place as soon as the limits of the batch allow it; they too end where the cache ends by then::

       prompt 3   . . . . . a b c d e f │ g
       prompt 1   a b c f g h i j k l m │ n

Beams, penalties and other settings, other kinds of cache and sharded models are left to transformers' ``generate``.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
import torch.distributed
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from fc_lightning.data.samplers import generation_order, plan_generation
from fc_lightning.evaluation.greedy_head import GreedyHead
from fc_lightning.evaluation.kv_cache import BufferedCache, swap_remove
from fc_lightning.utils.pretrained import sliding_windows

# Settings that the loop here follows, or that mean nothing to it.
_SUPPORTED = {"max_new_tokens", "min_new_tokens", "num_beams", "num_return_sequences", "use_cache"}
_SUPPORTED |= {"do_sample", "temperature", "top_k", "top_p", "min_p"}
_SUPPORTED |= {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "cache_implementation"}
_SUPPORTED |= {"_from_model_config", "output_attentions", "output_hidden_states", "output_scores", "output_logits"}
_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None}  # transformers' values where none is set

NO_LIMITS = (sys.maxsize, sys.maxsize)  # tokens and prompts at once
Output = tuple[list[int], bool]  # new ids without the one that ends the turn, and whether there was one


class Constraint(Protocol):
    """A logits processor that keeps each row to a grammar and is notified which rows are active."""

    def set_rows(self, rows: Sequence[int]) -> None:
        """Set the rows of the following calls, as indices into all rows."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Set the scores ``(rows, vocabulary)`` of forbidden tokens to minus infinity.

        A call brings each of its rows one new token, the last of ``input_ids``; the first call of a row none.
        """


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
    limits: tuple[int, int] = NO_LIMITS,
) -> list[Output]:
    """Generate a continuation of each prompt.

    Args:
        model: A causal language model of transformers, not a wrapper around one.
        prompts: Token IDs of each prompt.
        settings: Fields of transformers' ``GenerationConfig``, including ``max_new_tokens``. With
            ``num_return_sequences: n`` each prompt is continued n times.
        end_ids: Ids that end a turn.
        pad_id: Id that pads shorter rows, on the left.
        constraint: Keeps each row to a grammar; not with beams.
        synced_gpus: Whether all ranks must take the same number of steps, as a sharded model requires.
        on_step: Called after each prompt that was read and each step of decoding, with the number of rows that ended.
            What is left to transformers does not call it.
        limits: Largest number of tokens, padding included, and of prompts that are in the batch at once.

    Returns:
        For each prompt (n in a row) the new ids without the one that ends the turn, and whether there was one.
    """
    causal = cast(Any, model)
    settings = {**settings, "eos_token_id": list(end_ids), "pad_token_id": pad_id, "use_cache": True}
    choose = _token_choice(causal, settings)
    if synced_gpus or choose is None or not _has_plain_cache(causal):
        return _generate_padded(causal, prompts, settings, constraint, synced_gpus, limits)
    copies = settings.get("num_return_sequences") or 1
    rows = [prompt for prompt in prompts for _ in range(copies)]
    # For few rows the rounded copy of the head costs more than it saves.
    plain = choose is _argmax and constraint is None and not settings.get("min_new_tokens") and len(rows) > 4
    head = GreedyHead.of(causal.get_output_embeddings()) if plain else None
    batch = _Batch(causal, rows, (limits[0] * copies, limits[1] * copies))
    outputs: dict[int, Output] = {}
    while batch.refill(on_step):
        ids = _next_ids(batch, settings, choose, constraint) if head is None else _likeliest_ids(batch, head)
        ended = batch.append(ids.tolist(), settings["eos_token_id"], settings["max_new_tokens"])
        outputs |= ended
        on_step(len(ended))
    return [outputs[number] for number in range(len(rows))]


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


@dataclass
class _Row:
    """A prompt in the batch: its number, the position of its first token in the cache, and the ids that follow it."""

    number: int
    start: int
    new_ids: list[int] = field(default_factory=list)


class _Batch:
    """The rows that decode together, and the prompts that wait for a place."""

    def __init__(self, causal: Any, prompts: Sequence[Sequence[int]], limits: tuple[int, int]):
        self.causal = causal
        self.prompts = prompts
        self.limits = limits
        self.device = next(causal.parameters()).device
        self.rows: list[_Row] = []
        self.waiting = generation_order(prompts)[::-1]
        self.end = max(map(len, prompts), default=1)  # position of the next token
        windows = sliding_windows(causal.config.get_text_config())
        self.cache = BufferedCache.for_batch(windows, self.end - 1, on_cpu=self.device.type == "cpu")
        self.reader = BufferedCache.for_prompt(len(windows), self.end - 1)
        self.read_ids: Sequence[int] = []  # those in the reader

    def refill(self, on_step: Callable[[int], None]) -> bool:
        """Read as many of the waiting prompts as the limits allow; returns whether there are rows."""
        num_before = len(self.rows)
        while self.waiting and self._num_allowed(len(self.prompts[self.waiting[-1]])) > len(self.rows):
            number = self.waiting.pop()
            self.rows.append(_Row(number, self.end - len(self.prompts[number])))
        new_places = range(num_before, len(self.rows))
        for place in sorted(new_places, key=lambda place: list(self.prompts[self.rows[place].number])):
            self._read(self.prompts[self.rows[place].number][:-1])
            self._arrange(num_before)
            self.cache.add_row(self.reader, place)
            on_step(0)
        self._arrange(num_before)
        return bool(self.rows)

    def inputs(self) -> dict[str, Any]:
        """Arguments of the model for the last token of each row."""
        last_ids = [(row.new_ids or self.prompts[row.number])[-1] for row in self.rows]
        starts = torch.tensor([[row.start] for row in self.rows], device=self.device)  # (rows, 1)
        return {
            "input_ids": torch.tensor(last_ids, device=self.device)[:, None],
            "attention_mask": (torch.arange(self.end, device=self.device) >= starts).long(),  # (rows, end)
            "position_ids": self.end - 1 - starts,
            "past_key_values": self.cache,
            "use_cache": True,
        }

    def append(self, ids: Sequence[int], end_ids: Sequence[int], limit: int) -> dict[int, Output]:
        """Append the next id of each row, and take out the rows that end: their outputs, by number."""
        ended: dict[int, Output] = {}  # by place
        for place, (row, token) in enumerate(zip(self.rows, ids, strict=True)):
            if token in end_ids:
                ended[place] = (row.new_ids, True)
                continue
            row.new_ids.append(token)
            if len(row.new_ids) == limit:
                ended[place] = (row.new_ids, False)
        outputs = {self.rows[place].number: output for place, output in ended.items()}
        self.end += 1
        if ended:
            order = swap_remove(len(self.rows), list(ended))
            self.rows = [self.rows[place] for place in order.tolist()]
            self.cache.batch_select_indices(order)
        return outputs

    @property
    def _first(self) -> int:
        """The first position of any row."""
        return min((row.start for row in self.rows), default=self.end - 1)

    def _num_allowed(self, length: int) -> int:
        """Number of rows that the limits allow together with a prompt of this length, at least one."""
        return max(1, min(self.limits[1], self.limits[0] // max(length, self.end - self._first)))

    def _arrange(self, num_before: int) -> None:
        # A few rows more than needed, so that not every new one moves all others.
        num_allocated = min(self._num_allowed(1), num_before * 5 // 4)
        self.cache.arrange(len(self.rows), num_allocated, self._first, self.reader)

    def _read(self, ids: Sequence[int]) -> None:
        """Compute the positions of a prompt that the previous one does not have."""
        num_shared = shared_length(self.read_ids, ids)
        self.reader.crop(num_shared)
        if num_shared < len(ids):
            new_ids = torch.tensor([ids[num_shared:]], device=self.device)
            self.causal.get_decoder()(input_ids=new_ids, past_key_values=self.reader, use_cache=True)
        self.read_ids = ids


def _likeliest_ids(batch: _Batch, head: GreedyHead) -> Tensor:
    """Take a step: the last token of each row goes in, the next ones ``(rows,)`` come out."""
    return head.best(batch.causal.get_decoder()(**batch.inputs()).last_hidden_state[:, -1])


def _next_ids(
    batch: _Batch,
    settings: Mapping[str, Any],
    choose: Callable[[Tensor], Tensor],
    constraint: Constraint | None,
) -> Tensor:
    """Take a step with any choice and constraint."""
    inputs = batch.inputs()
    scores = batch.causal(**inputs, logits_to_keep=1).logits[:, -1].float()  # (rows, vocabulary)
    for place, row in enumerate(batch.rows):
        if len(row.new_ids) < (settings.get("min_new_tokens") or 0):
            scores[place, settings["eos_token_id"]] = -torch.inf
    if constraint is not None:
        constraint.set_rows([row.number for row in batch.rows])
        scores = constraint(inputs["input_ids"], scores)
    return choose(scores)


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
    limits: tuple[int, int],
) -> list[Output]:
    """Leave batches to transformers as they are: for beams, for other kinds of cache, and for sharded models."""
    device, copies = next(causal.parameters()).device, settings.get("num_return_sequences") or 1
    batches = plan_generation(prompts, *limits)
    if synced_gpus:  # a rank without prompts takes part in the batches of the others, with a placeholder
        count = torch.tensor(len(batches), device=device)
        torch.distributed.all_reduce(count, op=torch.distributed.ReduceOp.MAX)
        batches += [[] for _ in range(int(count) - len(batches))]
    outputs: dict[int, Output] = {}
    for batch in batches:
        numbers = [number * copies + copy for number in batch for copy in range(copies)]
        if constraint is not None:
            constraint.set_rows(numbers)
        processors = LogitsProcessorList([constraint] if constraint is not None and batch else [])
        chosen = [prompts[number] for number in batch] or [[settings["pad_token_id"]]]
        ids, mask = _pad_left(chosen, settings["pad_token_id"], device)
        sequences = causal.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(**settings),
            logits_processor=processors,
            synced_gpus=synced_gpus,
        )
        texts = [_until_end(row, settings["eos_token_id"]) for row in sequences[:, ids.shape[1] :].tolist()]
        outputs |= dict(zip(numbers, texts, strict=bool(batch)))
    return [outputs[number] for number in range(len(prompts) * copies)]


def _pad_left(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both ``(rows, longest)``."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    ids = [[pad_id] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
    mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _until_end(ids: list[int], end_ids: Sequence[int]) -> Output:
    end = next((index for index, token in enumerate(ids) if token in end_ids), None)
    return (ids, False) if end is None else (ids[:end], True)
