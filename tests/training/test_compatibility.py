"""A checkpoint is refused by every other model, whatever differs."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from fc_lightning.models.loading import base_digest, load_base
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
    check_base(checkpoint, "a", "1", "2")
    check_base({}, "a", "1", "2")  # a checkpoint of Lightning says nothing
    with pytest.raises(BaseModelError, match=r"trained on another base \(a, revision b\) than `model.base` c"):
        check_base(checkpoint, "c", "other", "2")
    with pytest.raises(BaseModelError, match="its token ids belong to another vocabulary"):
        check_base(checkpoint, "a", "1", "other")


def adapter(**settings):
    model = load_base(TINY, None, torch.float32, "eager")
    return get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **settings}))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora_alpha": 64}, "`lora_alpha` was 8, and is 64 now"),
        ({"use_rslora": True}, "`use_rslora` was False, and is True now"),
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
