"""The model: a base with rows for the new tokens and an adapter, and its loss."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import is_flash_attn_2_available

from fc_lightning.data.packing import Batch
from fc_lightning.models.attention import BY_DOCUMENT
from fc_lightning.models.lora import make_lean
from fc_lightning.utils.pretrained import BaseModelError, resolve_base

HEAD_CHUNK = 512  # rows of logits that are held at a time


def choose_attention(config: PretrainedConfig, device: torch.device, mixed: bool) -> tuple[str, str]:
    """The attention implementation for a model on a device, and why.

    Each of them keeps packed documents apart; the tests show it for those that run on a CPU.

    Args:
        config: Of the model.
        device: Where it runs.
        mixed: Whether it runs in half precision, as flash kernels must.
    """
    if device.type != "cuda":
        return BY_DOCUMENT, "without a GPU, each document by itself costs least"
    if mixed and is_flash_attn_2_available():
        return "flash_attention_2", "flash-attn is installed, and computes nothing between documents"
    if getattr(config, "attn_logit_softcapping", None):
        return "flex_attention", "the model caps its attention logits, which flex does on a GPU"
    return "sdpa", "the model caps no attention logits"


def load_base(
    base: str,
    revision: str | None,
    dtype: torch.dtype,
    attention: str,
    quantization: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Load a base model.

    Args:
        base: See :func:`fc_lightning.utils.pretrained.resolve_base`.
        revision: Revision on the hub.
        dtype: Of its weights.
        attention: One of transformers' attention implementations.
        quantization: Fields of transformers' ``BitsAndBytesConfig``, to keep the matrices in 4 or 8 bits.
        device: Where a quantized model is loaded to; others stay in the machine's memory.

    Raises:
        BaseModelError: If there is none, or it cannot be quantized.
    """
    extra: dict[str, Any] = {}
    if quantization:
        settings = {"bnb_4bit_compute_dtype": dtype, **quantization}
        extra = {"quantization_config": BitsAndBytesConfig(**settings), "device_map": {"": device}}
    try:
        return AutoModelForCausalLM.from_pretrained(
            resolve_base(base),
            revision=revision,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,  # never a pickle
            trust_remote_code=False,  # not given, transformers asks at the terminal
            **extra,
        )
    except ImportError as error:
        raise BaseModelError('`model.quantization` needs bitsandbytes: pip install "fc-lightning[qlora]"') from error
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise BaseModelError(f"{base}: the model could not be loaded (`model.base`): {reason}") from error


def base_digest(model: PreTrainedModel) -> str:
    """A fingerprint of a base's weights, the same in whichever precision or quantization it was loaded.

    Looked at are the vectors (norms, biases) and rows of the embedding, which no quantization touches.
    """
    embedding = model.get_input_embeddings().weight
    digest = hashlib.sha256(str(list(embedding.shape)).encode())
    vectors = [weight for _, weight in sorted(model.named_parameters()) if weight.ndim == 1]
    for weight in (embedding[:: max(1, len(embedding) // 256)], *vectors):
        digest.update(weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def load_config(base: str, revision: str | None) -> PretrainedConfig:
    """The configuration of a base.

    Raises:
        BaseModelError: If there is none.
    """
    try:
        folder = resolve_base(base)
        return AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=False).get_text_config()
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise BaseModelError(f"{base}: no model configuration could be loaded (`model.base`): {reason}") from error


@torch.no_grad()
def add_token_rows(model: PreTrainedModel, pieces: Mapping[int, Sequence[int]]) -> None:
    """Give new tokens a row in the embedding, and in the head, that starts as the mean of their pieces' rows.

    Args:
        model: Changed in place; its matrices grow if the new ids do not fit.
        pieces: For each new id the ids of the pieces that its text was made of.
    """
    if not pieces:
        return
    rows = max(pieces) + 1
    if rows > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)
    for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
        for token, parts in pieces.items():
            layer.weight[token] = layer.weight[list(parts)].float().mean(0).to(layer.weight.dtype)


def untie_head(model: PreTrainedModel) -> None:
    """Give the head a matrix of its own.

    An adapter on a head that is tied to the embedding trains, but merging it would write into the embedding too.
    """
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    model.config.tie_word_embeddings = False
    model.config.get_text_config().tie_word_embeddings = False


def add_adapter(model: PreTrainedModel, peft: PeftConfig, new_tokens: Sequence[int]) -> PeftModel:
    """Wrap a base in an adapter: the base is frozen, the adapter is fp32, and of the embedding only new rows train.

    Args:
        model: The base, with rows for the new tokens.
        peft: Any configuration that puts its weights inside of the model (LoRA and its relatives).
        new_tokens: Ids whose rows are to be trained.

    Raises:
        BaseModelError: If the configuration cannot train what is asked of it.
    """
    kind = type(peft).__name__
    if peft.is_prompt_learning:
        raise BaseModelError(
            f"`model.peft`: {kind} puts tokens of its own before each row, so packs cannot be kept apart"
        )
    head_adapted = check_target_module_exists(peft, "lm_head")
    if head_adapted and getattr(model.config, "tie_word_embeddings", False):
        untie_head(model)
    if new_tokens:
        if not hasattr(peft, "trainable_token_indices"):
            raise BaseModelError(
                f"`model.peft`: {kind} cannot train rows of new tokens; set `model.special_tokens: []`"
            )
        peft.trainable_token_indices = {_embedding_name(model): list(new_tokens)}
    peft.task_type = peft.task_type or "CAUSAL_LM"
    adapted = get_peft_model(model, peft, autocast_adapter_dtype=True)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    make_lean(adapted)
    return adapted


def shard(model: nn.Module, mesh: Any) -> None:
    """Spread the weights over the ranks of a device mesh (FSDP2): each decoder layer by itself, the rest together.

    Embedding and head must be in one unit, because they may share a matrix.
    The loss does not go through the model's ``forward``, and calls the head as often as a rank has chunks of labels.
    As a forward method of the whole it gathers the head once, so that all ranks wait for each other equally often.

    Args:
        model: A causal language model or a PeftModel.
        mesh: The data-parallel dimension of a device mesh.
    """
    causal = _causal(model)
    for layer in causal.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(causal, mesh=mesh)
    causal.token_loss_sum = MethodType(_token_loss_sum, causal)
    register_fsdp_forward_method(causal, "token_loss_sum")


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """What is trained, by name. Of a sharded model the shards are put together: all ranks must call it."""
    trained = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in trained.items()}


def are_finite(gradients: Sequence[Tensor]) -> Tensor:
    """Whether all gradients are finite, a scalar; of sharded ones, this rank's shards."""
    local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    norms = torch._foreach_norm([gradient for gradient in local if gradient.numel()])
    return torch.stack(norms).isfinite().all() if norms else torch.tensor(True)


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """How many parameters are trained, and how many there are."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def training_flops(model: nn.Module, batch: Batch) -> float:
    """Floating-point operations that a forward and a backward pass over a batch need.

    Two for each weight of a matrix and token in the forward pass, two in the backward pass, and two more where the
    weight itself is trained; the head's for supervised tokens alone. In attention 12 for each pair of positions that
    see each other, layer, head and width. What is computed again, or on padding, is not needed.

    Args:
        model: A causal language model of transformers, or a PeftModel around one.
        batch: See :class:`fc_lightning.data.packing.Batch`.
    """
    causal, head = _causal(model), _causal(model).get_output_embeddings()
    config = causal.config.get_text_config()

    def of(module: nn.Module) -> int:
        matrices = [weight for weight in module.parameters() if weight.dim() == 2]
        return sum(weight.numel() * (6 if weight.requires_grad else 4) for weight in matrices)

    layers = causal.get_decoder().layers
    total = batch["num_tokens"] * sum(map(of, layers)) + batch["num_supervised"] * of(head)
    width = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads) * config.num_attention_heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(layers)
    in_rows = [[end - start for at, start, end in batch["documents"] if at == row] for row in range(len(batch["ids"]))]
    lengths = [n for row, ids in zip(in_rows, batch["ids"], strict=True) for n in row[: len(ids)]]  # not of padding
    for length in lengths:
        for kind in kinds:
            seen = min(config.sliding_window, length) if kind == "sliding_attention" else length
            total += 12 * width * (seen * (seen + 1) / 2 + (length - seen) * seen)
    return total


def token_loss_sum(model: nn.Module, batch: Batch, chunk: int = HEAD_CHUNK) -> Tensor:
    """The sum of the cross-entropies of all supervised tokens of a batch, a scalar in fp32.

    Logits are made only where there is a label, and no more than ``chunk`` rows of them at a time: past that, chunks
    are computed again in the backward pass.

    Args:
        model: A causal language model of transformers, or a PeftModel around one.
        batch: See :class:`fc_lightning.data.packing.Batch`.
        chunk: Rows of logits held at a time.
    """
    causal = _causal(model)
    if isinstance(causal, FSDPModule):
        return cast(Any, causal).token_loss_sum(batch, chunk)
    return _token_loss_sum(causal, batch, chunk)


def _causal(model: nn.Module) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _token_loss_sum(causal: Any, batch: Batch, chunk: int) -> Tensor:
    # No mask and no cache: transformers then tells documents apart by positions that start again.
    extra: dict[str, Any] = {}
    if causal.config._attn_implementation == BY_DOCUMENT:
        extra = {"documents": batch["documents"]}
    elif "flash" in causal.config._attn_implementation:
        extra = _flash_arguments(batch)
    hidden = causal.get_decoder()(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False, **extra
    ).last_hidden_state
    places = batch["supervised_index"]
    hidden = hidden.flatten(0, 1)[places]  # (supervised, width)
    labels = batch["labels"].flatten()[places]  # (supervised,)
    head, cap = causal.get_output_embeddings(), getattr(causal.config, "final_logit_softcapping", None)
    if len(labels) <= chunk:
        return _head_loss(head, hidden, labels, cap)
    parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    losses = [checkpoint(_head_loss, head, part, targets, cap, use_reentrant=False) for part, targets in parts]
    return torch.stack(losses).sum()


def _flash_arguments(batch: Batch) -> dict[str, Any]:
    """Where documents end in the rows one behind the other, as flash kernels want it.

    Left to itself, transformers finds them again in every layer, with a sync each, and only where a batch is one row.
    """
    sizes = torch.tensor([0] + [end - start for _, start, end in batch["documents"]], dtype=torch.int32)
    ends = sizes.cumsum(0, dtype=torch.int32).to(batch["input_ids"].device, non_blocking=True)
    longest = int(sizes.max())
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def _head_loss(head: nn.Module, hidden: Tensor, labels: Tensor, cap: float | None) -> Tensor:
    """Summed cross-entropy of ``(n, width)`` hidden states against ``(n,)`` labels."""
    logits = head(hidden).float()
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return F.cross_entropy(logits, labels, reduction="sum")


def _embedding_name(model: PreTrainedModel) -> str:
    embedding = model.get_input_embeddings()
    return next(name for name, module in model.named_modules() if module is embedding).rsplit(".", 1)[-1]
