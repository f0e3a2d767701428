"""A checkpoint is rejected by every other model, whatever differs."""

import contextlib
import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from fc_lightning.models.loading import base_digest, base_record, load_base
from fc_lightning.training.checkpoint_io import CheckpointError
from fc_lightning.training.compatibility import adapter_settings, check_adapter, check_base, check_weights
from fc_lightning.utils.pretrained import BaseModelError

TINY = "tests/models/tiny_gemma2"


@pytest.fixture
def base(tmp_path):
    return shutil.copytree(TINY, tmp_path / "base")


def rewrite(base, change):
    file = base / "model.safetensors"
    weights = {name: change(name, weight) for name, weight in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})


def test_every_weight_is_in_the_digest(base):
    expected = base_digest(TINY, None)
    assert base_digest(str(base), None) == expected
    original = load_file(base / "model.safetensors")
    for changed in original:
        rewrite(base, lambda name, weight, changed=changed: weight * 1.5 + 0.1 if name == changed else weight)
        assert base_digest(str(base), None) != expected, changed
        save_file(original, base / "model.safetensors", {"format": "pt"})
    assert base_digest(str(base), None) == expected


def test_the_digest_is_of_the_weights_and_not_of_their_files(base):
    """The same in two files, and in bfloat16 as in float32."""
    rewrite(base, lambda name, weight: weight.bfloat16().float())
    expected = base_digest(str(base), None)
    weights = {name: weight.bfloat16() for name, weight in load_file(base / "model.safetensors").items()}
    names = sorted(weights)
    files = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: weights[name] for name in part}, base / file, {"format": "pt"})
    (base / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    assert base_digest(str(base), None) == expected


def test_an_untied_head_is_another_base(base):
    expected = base_digest(str(base), None)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    assert base_digest(str(base), None) != expected


def test_another_base_or_vocabulary():
    checkpoint = {"base": {"name": "a", "revision": "b", "weights": "1"}, "vocabulary": "2"}
    check_base(checkpoint, {"name": "a", "weights": "1"}, "2")
    check_base({}, {"name": "a", "weights": "1"}, "2")  # a checkpoint of Lightning says nothing
    with pytest.raises(BaseModelError, match=r"trained on a different base \(a, revision b\) than `model.base` c"):
        check_base(checkpoint, {"name": "c", "weights": "other"}, "2")
    with pytest.raises(BaseModelError, match="its token IDs belong to a different vocabulary"):
        check_base(checkpoint, {"name": "a", "weights": "1"}, "other")


@pytest.mark.parametrize(
    ("field", "value", "is_another"),
    [
        ("final_logit_softcapping", None, True),
        ("query_pre_attn_scalar", 4, True),
        ("sliding_window", 2, True),
        ("rms_norm_eps", 0.5, True),
        ("rope_parameters", {"rope_theta": 5.0, "rope_type": "default"}, True),
        ("use_cache", False, False),
        ("transformers_version", "4.0.0", False),
        ("torch_dtype", "bfloat16", False),
    ],
)
def test_the_same_weights_with_other_computations(base, field, value, is_another):
    """The logits decide: a configuration that changes them is another base, any other is not."""
    input_ids = torch.arange(3, 60)[None]
    before = load_base(TINY, None, torch.float32, "eager")(input_ids).logits
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, field: value}))
    after = load_base(str(base), None, torch.float32, "eager")(input_ids).logits
    assert torch.equal(before, after) != is_another
    checkpoint = {"base": base_record(TINY, None)}
    outcome = pytest.raises(BaseModelError, match=f"`{field}` was") if is_another else contextlib.nullcontext()
    with outcome:
        check_base(checkpoint, base_record(str(base), None), "2")


def test_weights_that_a_base_lacks_are_not_made_up(base):
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if "q_proj" in name)
    save_file(
        {key: weight for key, weight in weights.items() if key != name}, base / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(BaseModelError, match=f"1 weights are missing, e.g. {name}"):
        load_base(str(base), None, torch.float32, "eager")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_weights_that_are_not_finite_are_refused(value):
    with pytest.raises(CheckpointError, match="the weights are not finite"):
        check_weights({"w": torch.tensor([1.0, value])}, {"w": torch.zeros(2)})


def adapter(**settings):
    model = load_base(TINY, None, torch.float32, "eager")
    return get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **settings}))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora_alpha": 64}, "`lora_alpha` was 8 and is now 64"),
        ({"use_rslora": True}, "`use_rslora` was False and is now True"),
        ({"rank_pattern": {"q_proj": 4}}, "`rank_pattern` was {}"),
    ],
)
def test_another_adapter_of_the_same_shapes(settings, said):
    model, other = adapter(), adapter(**settings)
    weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    check_weights(weights, {name: value for name, value in other.named_parameters() if value.requires_grad})
    checkpoint = {"adapter": adapter_settings(model)}
    assert json.loads(json.dumps(checkpoint)) == checkpoint  # plain types: a checkpoint holds no code
    check_adapter(checkpoint, adapter_settings(adapter()))
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    check_adapter(checkpoint, adapter_settings(adapter(target_modules=modules)))  # what all-linear means
    check_adapter({}, adapter_settings(other))
    with pytest.raises(BaseModelError) as caught:
        check_adapter(checkpoint, adapter_settings(other))
    assert said in str(caught.value)
