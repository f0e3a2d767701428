"""Generation from a shared cache, against plain forward passes without a cache, one prompt at a time."""

import contextlib
import copy
import random

import pytest
import torch
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    MistralConfig,
)

from fc_lightning.evaluation.generation import NO_LIMITS, generate, shared_length
from fc_lightning.models.attention import BY_DOCUMENT
from fc_lightning.models.lora import add_adapter, unwrap_peft

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "head_dim": 16}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 8, "tie_word_embeddings": False}
CONFIGS = {
    "Gemma 3, sliding and full": Gemma3TextConfig(
        **SIZES, layer_types=["sliding_attention", "sliding_attention", "full_attention"]
    ),
    "Gemma 2, with soft caps": Gemma2Config(**SIZES, query_pre_attn_scalar=16),
    "Mistral, all sliding": MistralConfig(**{**SIZES, "intermediate_size": 48}),
}
PAD, NEW = 0, 14
ENDS = [*range(1, 64, 6)]  # one id in six ends a turn, so that rows end at different steps
BEGINNING = [2, *range(10, 22)]  # longer than the sliding window
PROMPTS = [[*BEGINNING, 30, 31], [2, 40], [*BEGINNING, 30, 35, 36, 37], [2, 41, 42, 43, 44], [*BEGINNING], [2, 40]]


@pytest.fixture(scope="module", params=[(name, how) for name in CONFIGS for how in (BY_DOCUMENT, "eager")], ids=str)
def model(request):
    name, attention = request.param
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    adapted = add_adapter(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), [])
    return unwrap_peft(adapted.eval())


def greedy(model, prompt, new=NEW):
    """By forward passes over everything so far: the ids up to the end of the turn, and whether it ended."""
    row = list(prompt)
    for _ in range(new):
        with torch.no_grad():
            row.append(int(model(torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
        if row[-1] in ENDS:
            return row[len(prompt) : -1], True
    return row[len(prompt) :], False


@contextlib.contextmanager
def recorded_calls(model):
    """The keyword arguments of each call of the decoder: of reading, and with ``position_ids`` of decoding."""
    calls = []
    hook = model.get_decoder().register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    yield calls
    hook.remove()


def test_together_as_one_at_a_time(model):
    expected = [greedy(model, prompt) for prompt in PROMPTS]
    assert len({len(ids) for ids, _ in expected}) > 2
    assert generate(model, PROMPTS, {"max_new_tokens": NEW}, ENDS, PAD) == expected


@pytest.mark.parametrize("seed", range(2))
def test_any_limits_give_what_one_at_a_time_gives(model, seed):
    generator = random.Random(seed)
    beginnings = [[2, *generator.choices(range(3, 64), k=length)] for length in (0, 1, 6, 30)]
    prompts = [
        generator.choice(beginnings) + generator.choices(range(3, 64), k=generator.choice([0, 1, 3, 9, 40]))
        for _ in range(12)
    ]
    expected = [greedy(model, prompt) for prompt in prompts]
    for limits in ((10**6, 1), (10**6, 3), (1, 64), (generator.randint(20, 400), generator.randint(2, 9))):
        with recorded_calls(model) as calls:
            assert generate(model, prompts, {"max_new_tokens": NEW}, ENDS, PAD, limits=limits) == expected
        assert max(len(call["input_ids"]) for call in calls) <= limits[1]


def test_prompts_are_read_into_the_places_of_rows_that_ended(model):
    prompts = [[*prompt, number] for number in range(3, 9) for prompt in PROMPTS[:4]]
    ended = []
    with recorded_calls(model) as calls:
        outputs = generate(model, prompts, {"max_new_tokens": NEW}, ENDS, PAD, on_step=ended.append, limits=(10**6, 5))
    steps = [len(call["input_ids"]) for call in calls if "position_ids" in call]
    assert outputs == [greedy(model, prompt) for prompt in prompts]
    assert sum(ended) == len(prompts)
    # The batch is full until no prompt waits; no row goes on after its end.
    assert sum(steps) == sum(len(ids) + finished for ids, finished in outputs)
    assert steps == sorted(steps, reverse=True)
    assert steps.count(5) > len(steps) / 2


@pytest.mark.parametrize("limits", [(60, 64), (100, 3)], ids=str)
def test_the_limit_of_tokens_counts_padding_and_new_tokens(model, limits):
    prompts = [PROMPTS[number % 6] for number in range(20)]
    with recorded_calls(model) as calls:
        generate(model, prompts, {"max_new_tokens": 5}, ENDS, PAD, limits=limits)
    positions = [call["position_ids"] for call in calls if "position_ids" in call]  # of the last token of each row
    # A row is added only if all fit with what they have by then; they grow by fewer than five tokens afterwards.
    assert all(len(one) == 1 or len(one) * (int(one.max()) + 1 - 4) <= limits[0] for one in positions)
    assert max(map(len, positions)) > 2


def test_no_token_is_read_twice_and_no_row_goes_on_after_its_end(model):
    with recorded_calls(model) as calls:
        outputs = generate(model, PROMPTS, {"max_new_tokens": NEW}, ENDS, PAD)
    shapes = [tuple(call["input_ids"].shape) for call in calls]
    beginnings = {tuple(prompt[: n + 1]) for prompt in PROMPTS for n in range(len(prompt) - 1)}
    steps = [shape for shape in shapes if shape[1] == 1 and shape[0] == len(PROMPTS)][:1]
    first = shapes.index(steps[0])
    assert sum(rows * length for rows, length in shapes[:first]) == len(beginnings)
    # A row costs a step for each of its tokens and its end.
    needed = sum(len(ids) + ended for ids, ended in outputs)
    spent = sum(rows for rows, _ in shapes[first:])
    assert needed == spent < len(PROMPTS) * len(shapes[first:])
    assert [rows for rows, _ in shapes[first:]] == sorted((rows for rows, _ in shapes[first:]), reverse=True)


@pytest.mark.parametrize(
    ("defaults", "settings", "is_ours"),
    [
        ({}, {}, True),
        # As saved with a base that is converted from a GGUF file, and with google/gemma-2-2b-it and gemma-3.
        ({"_from_model_config": True, "output_attentions": False, "output_hidden_states": False}, {}, True),
        ({"cache_implementation": "hybrid", "top_k": 64, "top_p": 0.95, "do_sample": True}, {"do_sample": False}, True),
        ({"do_sample": True}, {"min_p": 0.1}, True),
        ({}, {"num_beams": 2}, False),
        ({"repetition_penalty": 1.05}, {"do_sample": False}, False),
        ({}, {"no_repeat_ngram_size": 3}, False),
    ],
    ids=str,
)
def test_which_settings_are_left_to_transformers(monkeypatch, defaults, settings, is_ours):
    model = Gemma3ForCausalLM(CONFIGS["Gemma 3, sliding and full"]).eval()
    model.generation_config = GenerationConfig.from_dict(defaults)
    calls = []
    original = type(model).generate
    monkeypatch.setattr(type(model), "generate", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    generate(model, PROMPTS[:2], {"max_new_tokens": 3, **settings}, ENDS, PAD)
    assert (not calls) == is_ours


def test_several_continuations_of_each_prompt(model):
    settings = {"max_new_tokens": 6, "do_sample": True, "num_return_sequences": 3}
    torch.manual_seed(0)
    outputs = generate(model, PROMPTS[:2], settings, ENDS, PAD)
    assert len(outputs) == 6
    assert len({tuple(ids) for ids, _ in outputs[:3]}) > 1
    for limits in (NO_LIMITS, (10**6, 1)):
        nearly_greedy = generate(model, PROMPTS[:4], {**settings, "temperature": 1e-4}, ENDS, PAD, limits=limits)
        assert nearly_greedy == [greedy(model, prompt, 6) for prompt in PROMPTS[:4] for _ in range(3)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_k": 0, "top_p": 0.7},
        {"min_p": 0.2, "top_k": 20, "temperature": 2.0},
    ],
    ids=str,
)
def test_samples_are_those_of_transformers(model, settings):
    settings = {"max_new_tokens": NEW, "do_sample": True, **settings}
    for seed, prompt in enumerate(PROMPTS):
        torch.manual_seed(seed)
        out = model.generate(input_ids=torch.tensor([prompt]), eos_token_id=ENDS, pad_token_id=PAD, **settings)
        expected = [token for token in out[0, len(prompt) :].tolist() if token not in ENDS]
        torch.manual_seed(seed)
        assert generate(model, [prompt], settings, ENDS, PAD)[0][0] == expected


def test_beams_are_those_of_transformers(model):
    settings = {"max_new_tokens": 6, "num_beams": 3}
    outputs = generate(model, PROMPTS, settings, ENDS, PAD)
    assert generate(model, PROMPTS, settings, ENDS, PAD, limits=(40, 3)) == outputs
    for prompt, (ids, _) in zip(PROMPTS, outputs, strict=True):
        out = model.generate(input_ids=torch.tensor([prompt]), eos_token_id=ENDS, pad_token_id=PAD, **settings)
        expected = [token for token in out[0, len(prompt) :].tolist() if token not in ENDS]
        assert ids == expected


def test_a_least_number_of_new_tokens_counts(model):
    settings = {"max_new_tokens": NEW, "min_new_tokens": 9}
    outputs = generate(model, PROMPTS, settings, ENDS, PAD)
    assert all(len(ids) >= 9 for ids, _ in outputs)
    assert generate(model, PROMPTS, settings, ENDS, PAD, limits=(10**6, 2)) == outputs


def test_a_single_prompt_of_one_token(model):
    assert generate(model, [[2]], {"max_new_tokens": 3}, ENDS, PAD) == [greedy(model, [2], 3)]


@pytest.mark.parametrize(
    ("first", "second", "length"), [([], [1], 0), ([1, 2], [1, 3], 1), ([1, 2], [1, 2, 3], 2), ([4], [5], 0)]
)
def test_shared_length(first, second, length):
    assert shared_length(first, second) == shared_length(second, first) == length


@pytest.mark.parametrize("change", [{"layer_types": ["linear_attention"]}, {"num_kv_shared_layers": 1}], ids=str)
def test_a_model_that_remembers_otherwise_is_left_to_transformers(monkeypatch, change):
    torch.manual_seed(1)
    model = Gemma3ForCausalLM(CONFIGS["Gemma 3, sliding and full"]).eval()
    expected = generate(model, PROMPTS, {"max_new_tokens": NEW}, ENDS, PAD)
    calls = []
    original = type(model).generate
    monkeypatch.setattr(type(model), "generate", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    config = copy.copy(model.config)
    for name, value in change.items():
        object.__setattr__(config, name, value)
    monkeypatch.setattr(type(model.config), "get_text_config", lambda self, **_: config if not calls else self)
    assert generate(model, PROMPTS, {"max_new_tokens": NEW}, ENDS, PAD) == expected
    assert len(calls) == 1
