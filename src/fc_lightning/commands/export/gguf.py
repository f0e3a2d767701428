"""A model folder as a GGUF file, for llama.cpp and the programs that are built on it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from fc_lightning.chat_template.template import ChatTemplate, without_generation_marks
from fc_lightning.commands.export import ExportError

# Model type: architecture in GGUF, and how many layers there are to each one with full attention.
_ARCHITECTURES = {"gemma2": ("gemma2", 2), "gemma3_text": ("gemma3", 6)}
_LAYERS_OF_27B = {"gemma2": 46, "gemma3_text": 62}
_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
_FILE_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}


def write_gguf(folder: Path, file: Path, dtype: str, message_end: str | None = None) -> None:
    """Write the GGUF file of a merged model folder: weights, tokenizer, end tokens and chat template.

    Args:
        folder: An export with weights in safetensors.
        file: The file to write.
        dtype: Type of the matrices, a key of ``_TYPES``. Vectors are in float32.
        message_end: Another token, besides the turn's end, with which the model ends its turn.

    Raises:
        ExportError: If llama.cpp would compute something else than transformers.
    """
    import gguf  # an extra

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    weights = {name: file for file in sorted(folder.glob("*.safetensors")) for name in _names(file)}
    check_convertible(config, "lm_head.weight" in weights)
    architecture = _ARCHITECTURES[config.model_type][0]
    writer = gguf.GGUFWriter(file, architecture)
    _add_shape(writer, config)
    writer.add_file_type(int(getattr(gguf.LlamaFileType, _FILE_TYPES[dtype])))
    _add_tokenizer(writer, folder, config, message_end)
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, shard in weights.items():
        with safe_open(shard, "pt") as tensors:
            values = tensors.get_tensor(name).float().numpy()
        target = names.get_name(name, try_suffixes=(".weight",))
        if values.ndim == 1:  # a norm: transformers multiplies by 1 + weight, llama.cpp by the weight
            writer.add_tensor(target, values + 1)
            continue
        wanted = _TYPES[dtype]
        if wanted == "Q8_0" and values.shape[-1] % 32:  # quantized in blocks of 32
            wanted = "F16"
        quantization = getattr(gguf.GGMLQuantizationType, wanted)
        writer.add_tensor(target, gguf.quants.quantize(values, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_convertible(config: Any, has_own_head: bool = False) -> None:
    """Check that a file can be written, and that llama.cpp computes from it what transformers computes.

    llama.cpp fixes what Gemma's configuration could change.

    Args:
        config: The model's configuration.
        has_own_head: Whether the head is not the transposed embedding.

    Raises:
        ExportError: If not, or if the package gguf is missing.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ExportError("`--format gguf` needs the gguf package: pip install gguf")
    if config.model_type not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise ExportError(f"`--format gguf` writes {known}, not {config.model_type}: use llama.cpp's own converter")
    period = _ARCHITECTURES[config.model_type][1]
    layers = [
        "sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(config.num_hidden_layers)
    ]
    is_27b = config.num_hidden_layers == _LAYERS_OF_27B[config.model_type]  # scaled by another width than the others
    scale = config.hidden_size // config.num_attention_heads if is_27b else config.head_dim
    problems = {
        "`layer_types`": config.layer_types != layers,
        "`query_pre_attn_scalar`": config.query_pre_attn_scalar != scale,
        "a LoRA on the head": has_own_head and config.model_type == "gemma2",
    }
    if found := [what for what, is_wrong in problems.items() if is_wrong]:
        raise ExportError(f"`--format gguf`: llama.cpp does not support this model: {found[0]}")


def modelfile(template: ChatTemplate) -> str | None:
    """Ollama's description of ``model.gguf``, with the chat template in its own language.

    Args:
        template: The chat template of the training.

    Returns:
        The text; None if the chat template is not the shipped one, which is the one that was translated.
    """
    if template.syntax:  # Ollama has code for this language
        name = template.syntax.name
        return f"FROM ./model.gguf\nRENDERER {name}\nPARSER {name}\nPARAMETER temperature 0\n"
    if "macro tool_lines" not in template.source:
        return None
    source = (files("fc_lightning.commands.export") / "ollama_template.txt").read_text(encoding="utf-8").rstrip("\n")
    stop = template.chat_format.turn_end if template.chat_format else ""
    ending = f"PARAMETER stop {stop}\nPARAMETER temperature 0\n"
    return f'FROM ./model.gguf\nTEMPLATE """{source}\n"""\n{ending}'


def _names(file: Path) -> list[str]:
    with safe_open(file, "pt") as tensors:
        return list(tensors.keys())


def _add_shape(writer: Any, config: Any) -> None:
    """The hyper-parameters of the architecture."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_sliding_window(config.sliding_window)
    writer.add_vocab_size(config.vocab_size)
    if config.attn_logit_softcapping:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] != "default":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])


def _add_tokenizer(writer: Any, folder: Path, config: Any, message_end: str | None) -> None:
    """Tokens, the order of merges as scores, end tokens, and the chat template."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokens, scores, kinds = zip(*_tokens(json.loads((folder / "tokenizer.json").read_text()), config), strict=True)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    ids |= {"unk": tokenizer.unk_token_id, "eom": tokenizer.convert_tokens_to_ids(message_end) if message_end else None}
    ids["eot"] = next((token for token in _end_ids(folder) if token not in ids.values()), None)
    for name, token in ids.items():
        if token is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    writer.add_chat_template(without_generation_marks(tokenizer.chat_template))


def _end_ids(folder: Path) -> list[int]:
    return json.loads((folder / "generation_config.json").read_text())["eos_token_id"]


def _tokens(tokenizer: dict[str, Any], config: Any) -> Iterator[tuple[str, float, int]]:
    """Text, score and type of each token. llama.cpp joins the pair whose token has the highest score first."""
    import gguf

    model = tokenizer["model"]
    if model["type"] != "BPE" or not model["byte_fallback"]:
        raise ExportError("`--format gguf` supports only Gemma-style tokenizers (BPE with byte fallback)")
    texts = {token: text for text, token in model["vocab"].items()}
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        ranks.setdefault(left + right, rank)
    added = {token["id"]: token for token in tokenizer["added_tokens"]}
    kinds = gguf.TokenType
    for token in range(config.vocab_size):
        if token in added:
            kind = kinds.CONTROL if added[token]["special"] else kinds.USER_DEFINED
            is_unknown = added[token]["content"] == model["unk_token"]
            yield added[token]["content"], 0.0, int(kinds.UNKNOWN if is_unknown else kind)
        elif token not in texts:
            yield f"[PAD{token}]", -np.inf, int(kinds.UNUSED)
        elif len(texts[token]) == 6 and texts[token].startswith("<0x"):
            yield texts[token], 0.0, int(kinds.BYTE)
        else:
            yield texts[token], -float(ranks.get(texts[token], len(ranks))), int(kinds.NORMAL)
