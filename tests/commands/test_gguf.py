"""Exports as GGUF: read back by transformers, and run by llama.cpp itself."""

import importlib.util
import json
import re
import urllib.request
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGUFReader
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GgufConfig,
    Qwen3Config,
)

from fc_lightning.chat_template.template import ChatTemplate, without_generation_marks
from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer
from fc_lightning.commands.export import ExportError
from fc_lightning.commands.export.gguf import check_convertible, write_gguf
from fc_lightning.conversation.native_calls import FUNCTIONGEMMA
from fc_lightning.models.saving import write_model
from fc_lightning.utils.pretrained import resolve_base

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_time",
            "description": "Get the time.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
REQUEST = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 times  3 in Öslo? 🙂\n\tx"},
]
# Largest difference of logits: each type rounds the weights of this model differently.
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2, "q8_0": 5e-2}


def merged_folder(folder: Path, architecture: str) -> Path:
    """A model folder with random weights, as `export` merges it: Gemma 2 with new tokens, or Gemma 3."""
    tags = FUNCTIONGEMMA.tokens if architecture == "functiongemma" else tuple(SpecialToken)
    tokenizer, _ = load_tokenizer("tests/models/tiny_gemma2", None, tags)
    if architecture == "gemma2":
        model = AutoModelForCausalLM.from_pretrained("tests/models/tiny_gemma2")
        model.resize_token_embeddings(len(tokenizer))
    else:
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7, "num_attention_heads": 2}
        heads = {"num_key_value_heads": 1, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}
        ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
        config = Gemma3TextConfig(vocab_size=len(tokenizer) + 3, max_position_embeddings=512, **sizes, **heads, **ids)
        model = Gemma3ForCausalLM(config)
    folder.mkdir()
    write_model(model, ChatTemplate(tokenizer), folder, dtype=torch.float32)
    return folder


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_transformers_reads_the_same_model(architecture, dtype, tmp_path):
    folder = merged_folder(tmp_path / "merged", architecture)
    write_gguf(folder, folder / "model.gguf", dtype)
    source, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    # GGUF has no field for query_pre_attn_scalar: readers know those of the real models.
    settings = {"gguf_file": "model.gguf", "config": AutoConfig.from_pretrained(folder), "dtype": torch.float32}
    read = AutoModelForCausalLM.from_pretrained(folder, **settings, quantization_config=GgufConfig(dequantize=True))
    prompt = tokenizer.apply_chat_template(REQUEST, tools=TOOLS, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    assert (
        AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")(prompt).input_ids[-ids.shape[1] :]
        == ids[0].tolist()
    )
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, source(ids).logits, rtol=0, atol=TOLERANCE[dtype])


def test_a_base_is_parsed_once(tmp_path, monkeypatch):
    folder = merged_folder(tmp_path / "merged", "gemma3")
    write_gguf(folder, tmp_path / "model.gguf", "bfloat16")
    opened = []

    class Reader(GGUFReader):
        def __init__(self, path):
            opened.append(Path(path))
            super().__init__(path)

    monkeypatch.setattr("gguf.GGUFReader", Reader)
    monkeypatch.setenv("FC_LIGHTNING_CACHE", str(tmp_path / "cache"))
    converted = resolve_base(str(tmp_path / "model.gguf"))
    assert opened == [tmp_path / "model.gguf"]
    assert gguf.GGUFReader is Reader
    prompt = "What is 2 times  3?"
    expected = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")(prompt).input_ids
    assert AutoTokenizer.from_pretrained(converted)(prompt).input_ids == expected
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    ).state_dict()
    weights = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.bfloat16).state_dict()
    assert read.keys() == weights.keys()
    assert all(weights[name].equal(weight) for name, weight in read.items())


def test_the_file_has_end_tokens_kinds_of_tokens_and_a_template_without_marks(tmp_path):
    folder = merged_folder(tmp_path / "merged", "gemma3")
    write_gguf(folder, folder / "model.gguf", "bfloat16", message_end="<tool_response>")
    fields = GGUFReader(folder / "model.gguf").fields
    tokenizer = AutoTokenizer.from_pretrained(folder)
    named = {name: fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in ("bos", "eos", "eot", "eom")}
    expected = ["<bos>", "<eos>", "<end_of_turn>", "<tool_response>"]
    assert tokenizer.convert_ids_to_tokens(list(named.values())) == expected
    kinds = fields["tokenizer.ggml.token_type"].contents()
    texts = fields["tokenizer.ggml.tokens"].contents()
    assert (kinds[texts.index("<tool_call>")], kinds[texts.index("<end_of_turn>")], kinds[-1]) == (4, 3, 5)
    template = fields["tokenizer.chat_template"].contents()
    assert "generation -%}" not in template
    assert template == without_generation_marks(tokenizer.chat_template)
    rendered = [
        tokenizer.apply_chat_template(REQUEST, tools=TOOLS, tokenize=False, chat_template=source)
        for source in (template, tokenizer.chat_template)
    ]
    assert rendered[0] == rendered[1]


def test_what_llama_cpp_would_compute_differently_is_refused():
    config = AutoConfig.from_pretrained("tests/models/tiny_gemma2")
    check_convertible(config)
    # Layers, width, heads, width of a head and scale of Gemma 3 1B, 12B and 27B.
    for layers, width, heads, head, scale in (
        (26, 1152, 4, 256, 256),
        (48, 3840, 16, 256, 256),
        (62, 5376, 32, 128, 168),
    ):
        sizes = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads, "head_dim": head}
        check_convertible(Gemma3TextConfig(**sizes, query_pre_attn_scalar=scale))
    for change in ({"query_pre_attn_scalar": 7}, {"layer_types": ["full_attention"] * 2}):
        with pytest.raises(ExportError, match=f"`{next(iter(change))}`"):
            check_convertible(type(config)(**{**config.to_dict(), **change}))
    with pytest.raises(ExportError, match="not qwen3"):
        check_convertible(Qwen3Config())
    with pytest.raises(ExportError, match="a LoRA on the head"):
        check_convertible(config, has_own_head=True)


def test_a_missing_package_is_said_before_anything_is_loaded(run, monkeypatch, tmp_path, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "gguf" else find(name, *more))
    with pytest.raises(SystemExit):
        run("export", "--format=gguf", f"--output={tmp_path / 'exported'}")
    printed = capsys.readouterr()
    assert "needs the gguf package: pip install gguf" in printed.err
    assert "loading" not in printed.out


def test_export_writes_the_file_and_how_to_serve_it(run, tmp_path):
    folder = run("fit", "--trainer.max_steps=1", "--data.train=[{path: data/quickstart/train.jsonl, limit: 4}]")
    options = [f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}", f"--output={tmp_path / 'exported'}"]
    run("export", *options, "--format=gguf", "--dtype=q8_0", config=folder / "config.yaml")
    assert {"model.gguf", "Modelfile", "README.md"} <= {path.name for path in (tmp_path / "exported").iterdir()}
    assert not list((tmp_path / "exported").glob("*.safetensors"))
    card = (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    assert "llama-server -m DIR/model.gguf --jinja" in card
    assert re.search(r"exported weights \| q8\\_0", card)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gemma2", "gemma3", "functiongemma"])
def test_llama_cpp_reads_the_same_prompt_and_says_the_same(architecture, tmp_path):
    xllamacpp = pytest.importorskip("xllamacpp")
    folder = merged_folder(tmp_path / "merged", architecture)
    write_gguf(folder, folder / "model.gguf", "float32")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(REQUEST, tools=TOOLS, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.cpuparams.n_threads = str(folder / "model.gguf"), 1024, 1
    server = xllamacpp.Server(params)

    def ask(path: str, **request) -> dict:
        body = json.dumps({"temperature": 0, "n_predict": 8, **request}).encode()
        url = f"{server.listening_address}/{path}"
        with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as answer:
            return json.load(answer)

    rendered = ask("apply-template", messages=REQUEST, tools=TOOLS)["prompt"]
    assert "<bos>" + rendered.removeprefix("<bos>") == prompt
    tokens = ask("tokenize", content=rendered, add_special=True, parse_special=True)["tokens"]
    assert [2, *tokens[tokens[0] == 2 :]] == ids[0].tolist()
    out = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    answer = ask("completion", prompt=ids[0].tolist(), return_tokens=True)
    assert answer["tokens"][:6] == out[:6].tolist()
