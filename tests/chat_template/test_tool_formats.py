"""Other models than Gemma 2 and 3: their turns against texts written by hand, and whole runs on random weights."""

import json
from pathlib import Path

import pytest
import torch
from tests.helpers.chat import CALL_PARIS, CLOCK, HEAD, PARIS, WEATHER, encode, mark, render
from tests.helpers.native_conversations import native_tokenizer
from tests.helpers.tokenizers import tokenizer_of
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer, register_tokens
from fc_lightning.conversation.types import Conversation, Message

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 4096,
}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64}
GEMMA4_LAYERS = {**LAYERS, "global_head_dim": 16, "hidden_size_per_layer_input": 8, "num_global_key_value_heads": 1}
# ChatFormat of the template, how the text begins and ends, the model's class and configuration.
BASES = {
    "qwen2": ("chatml", None, "<|im_end|>", Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": ("chatml", None, "<|im_end|>", Qwen3ForCausalLM, Qwen3Config, {"tie_word_embeddings": True}),
    "llama3": ("llama3", "<|begin_of_text|>", "<|end_of_text|>", LlamaForCausalLM, LlamaConfig, {}),
    "gemma3": ("gemma", "<bos>", "<eos>", Gemma3ForCausalLM, Gemma3TextConfig, LAYERS),
    "gemma4": ("gemma4", "<bos>", "<eos>", Gemma4ForCausalLM, Gemma4TextConfig, GEMMA4_LAYERS),
}
# Those whose vocabulary has the tags of a native tool format too.
NATIVE = {"gemma3 with tags": ("gemma3", "functiongemma"), "gemma4 with tags": ("gemma4", "gemma4")}
CONVERSATION = Conversation(
    "",
    (
        Message("system", "Be brief."),
        Message("user", "Paris?"),
        Message("assistant", "", "A city.", (PARIS,)),
        Message("tool", "grey"),
        Message("assistant", "Grey."),
    ),
    (WEATHER, CLOCK),
)
# What is supervised stands between ⟦ and ⟧.
EXPECTED = {
    "chatml": f"<|im_start|>system\nBe brief.\n\n{HEAD}<|im_end|>\n<|im_start|>user\nParis?<|im_end|>\n"
    f"<|im_start|>assistant\n⟦<think>\nA city.\n</think>\n{CALL_PARIS}<|im_end|>⟧\n"
    "<|im_start|>tool\n<tool_response>\ngrey\n</tool_response><|im_end|>\n"
    "<|im_start|>assistant\n⟦Grey.<|im_end|>⟧\n",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    f"Be brief.\n\n{HEAD}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nParis?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    f"⟦<think>\nA city.\n</think>\n{CALL_PARIS}<|eot_id|>⟧"
    "<|start_header_id|>ipython<|end_header_id|>\n\n<tool_response>\ngrey\n</tool_response><|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Grey.<|eot_id|>⟧",
    "gemma4": f"<bos><|turn>system\nBe brief.\n\n{HEAD}<turn|>\n<|turn>user\nParis?<turn|>\n"
    f"<|turn>model\n⟦<think>\nA city.\n</think>\n{CALL_PARIS}<turn|>⟧\n"
    "<|turn>tool\n<tool_response>\ngrey\n</tool_response><turn|>\n"
    "<|turn>model\n⟦Grey.<turn|>⟧\n",
    "gemma": f"<bos><start_of_turn>user\nBe brief.\n\n{HEAD}\n\nParis?<end_of_turn>\n"
    f"<start_of_turn>model\n⟦<think>\nA city.\n</think>\n{CALL_PARIS}<end_of_turn>⟧\n"
    "<start_of_turn>tool\n<tool_response>\ngrey\n</tool_response><end_of_turn>\n"
    "<start_of_turn>model\n⟦Grey.<end_of_turn>⟧\n",
}


@pytest.fixture
def base(request, tmp_path) -> Path:
    """A folder with random weights and a tokenizer of one of the families."""
    architecture, tool_format = NATIVE.get(request.param, (request.param, ""))
    family, bos, eos, model_class, config_class, extra = BASES[architecture]
    torch.manual_seed(0)
    tokenizer = native_tokenizer(tool_format) if tool_format else tokenizer_of(family, bos, eos)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = config_class(**SIZES, **extra, **ids, bos_token_id=tokenizer.bos_token_id, vocab_size=len(tokenizer))
    if hasattr(config, "vocab_size_per_layer_input"):
        config.vocab_size_per_layer_input = len(tokenizer)
    folder = tmp_path / request.param
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", EXPECTED)
def test_turns_of_each_family(family):
    bos, eos = next((bos, eos) for name, bos, eos, *_ in BASES.values() if name == family)
    tokenizer = tokenizer_of(family, bos, eos)
    register_tokens(tokenizer, SpecialToken)
    template = ChatTemplate(tokenizer)
    assert mark(encode(CONVERSATION, template), tokenizer) == EXPECTED[family]
    # What a server sends at each turn is the beginning of what is trained on.
    whole, messages = EXPECTED[family].replace("⟦", "").replace("⟧", ""), template.messages(CONVERSATION)
    for turn in template.model_turns(messages):
        asked = template.render(messages[:turn], CONVERSATION, generation_prompt=True).text
        assert whole.startswith(asked)
        assert asked.endswith(template.chat_format.generation_prompt)


def test_the_models_own_template_counts_if_it_marks_its_turns(tmp_path):
    own = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert ChatTemplate(tokenizer_of("chatml", None, "<|im_end|>", own)).source == own
    unmarked = ChatTemplate(tokenizer_of("chatml", None, "<|im_end|>", "{{ messages[0].content }}"))
    assert "<|im_start|>" in render(CONVERSATION, unmarked).text
    file = tmp_path / "mine.jinja"
    file.write_text(own)
    assert ChatTemplate(tokenizer_of("llama3", None, "<|end_of_text|>"), file=file).source == own


slowly = [pytest.param(name, marks=pytest.mark.slow) for name in ("llama3", "gemma4", *NATIVE)]


@pytest.mark.parametrize("base", ["qwen3", *slowly], indirect=True)
def test_a_run_of_another_model(base, run, tmp_path):
    """Trained, evaluated with generation, exported; what is exported renders, predicts and parses as in training."""
    settings = [f"--model.base={base}", "--data.train=[{path: data/quickstart/train.jsonl, limit: 12}]"]
    folder = run("fit", *settings, "--trainer.max_steps=3", "--data.generation_batch_size=3")
    lines = (folder / "metrics.csv").read_text()
    assert "val/exact_match" in lines
    checkpoint, output = folder / "checkpoints" / "last.ckpt", tmp_path / "exported"
    run("export", f"--ckpt_path={checkpoint}", f"--output={output}", config=folder / "config.yaml")
    tokenizer, merged = AutoTokenizer.from_pretrained(output), AutoModelForCausalLM.from_pretrained(output)
    trained_with, _ = load_tokenizer(str(base), None, tuple(SpecialToken))
    template = ChatTemplate(trained_with)
    assert (template.syntax is not None) == ("tags" in base.name)
    messages, tools = template.messages(CONVERSATION), [tool.to_openai() for tool in CONVERSATION.tools]
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    assert text == render(CONVERSATION, template).text
    prompt = tokenizer.apply_chat_template(messages[:2], tools=tools, tokenize=False, add_generation_prompt=True)
    answer = text[len(prompt) :].split(template.chat_format.turn_start)[0]
    parsed = tokenizer.parse_response(answer, prefix=prompt)
    assert parsed["reasoning_content"] == "A city."
    arguments = parsed["tool_calls"][0]["function"]["arguments"]
    assert (json.loads(arguments) if isinstance(arguments, str) else arguments) == {"city": "Paris"}
    # The exported weights say what the run's last validation says it said.
    first = json.loads((folder / "predictions.jsonl").open().readline())
    ids = tokenizer(first["prompt"], add_special_tokens=False, return_tensors="pt")
    out = merged.generate(**ids, max_new_tokens=16, do_sample=False)[0, ids.input_ids.shape[1] :]
    ends = ChatTemplate.end_ids(tokenizer, template.syntax)
    assert merged.generation_config.eos_token_id == ends
    said = [token for token in out.tolist() if token not in ends]
    assert tokenizer.decode(said).startswith(first["text"][:20])
    if template.syntax:
        options = [f"--ckpt_path={checkpoint}", "--model.constrained=true", "--model.generation={max_new_tokens: 40}"]
        folder = run("validate", *options, config=folder / "config.yaml")
        lines = map(json.loads, (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines())
        assert all(line["parsed"] and line["grammar"] and line["finished"] for line in lines)


@pytest.mark.parametrize("base", ["qwen2", "qwen3", "llama3", "gemma4"], indirect=True)
@pytest.mark.slow
def test_packed_documents_of_another_model_have_the_loss_of_separate_ones(base):
    from tests.helpers.losses import DOCUMENTS, loss_alone

    from fc_lightning.data.collator import PackingCollator
    from fc_lightning.models.attention import BY_DOCUMENT
    from fc_lightning.models.loading import load_base
    from fc_lightning.models.loss import token_loss_sum

    model = load_base(str(base), None, torch.float32, BY_DOCUMENT)
    plain = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    batch = PackingCollator(0)([[DOCUMENTS[0], DOCUMENTS[1]], [DOCUMENTS[2]]])
    expected = sum(loss_alone(plain, document) for document in DOCUMENTS)
    torch.testing.assert_close(token_loss_sum(model, batch), expected, rtol=1e-5, atol=1e-5)
