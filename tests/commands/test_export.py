"""The exported folder: what stands in it, that it is the trained model, and that it is whole or not there."""

import errno
import json
import os
import resource
import shutil
import signal
import stat
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from fc_lightning.callbacks.adapter import adapter_folder
from fc_lightning.cli.lightning_cli import main
from fc_lightning.training.checkpoint_io import AtomicCheckpointIO
from fc_lightning.utils.atomic_files import atomic_folder

TINY = "configs/debug/tiny.yaml"
BASE = "tests/models/tiny_gemma2"


def command(folder: Path, *arguments: str) -> list[str]:
    return ["--config", TINY, f"--trainer.logger.init_args.save_dir={folder / 'runs'}", *arguments]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a short run of the tiny recipe."""
    folder = tmp_path_factory.mktemp("trained")
    main(
        [
            "fit",
            *command(
                folder,
                "--trainer.max_steps=2",
                "--data.validation=[{path: data/quickstart/validation.jsonl, limit: 2}]",
            ),
        ]
    )
    return folder


def exported(trained: Path, output: Path, *arguments: str) -> Path:
    main(["export", *command(trained, f"--output={output}", *arguments)])
    return output


def refused(capsys, trained: Path, output: Path, *arguments: str) -> str:
    """The one line that a failing export ends with; nothing may be left of it."""
    before = sorted(output.parent.iterdir())
    with pytest.raises(SystemExit) as exit_:
        exported(trained, output, *arguments)
    assert exit_.value.code == 1
    assert sorted(output.parent.iterdir()) == before
    return capsys.readouterr().err.splitlines()[-1]


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def test_a_merged_export(trained, tmp_path):
    folder = exported(trained, tmp_path / "model")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors", "README.md", "NOTICE"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    umask = os.umask(0)
    os.umask(umask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o666 & ~umask}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == sorted(tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"]))
    assert generation.get("do_sample", False) is False
    assert tokenizer.response_template["fields"].keys() == {"reasoning_content", "tool_calls", "content"}
    assert "Gemma Terms of Use" in (folder / "NOTICE").read_text()


def test_the_card_says_what_the_model_is_made_of(trained, tmp_path):
    folder = exported(trained, tmp_path / "model", "--dtype=bfloat16")
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "gemma"
    assert card.data.library_name == "transformers"
    assert card.data.widget[0]["tools"][0]["function"]["name"] == "get_weather"
    listed = {result.metric_name: f"{result.metric_value:.4f}" for result in card.data.eval_results}
    assert listed
    assert all(f"| {name} | {value} |".replace("_", r"\_") in card.text for name, value in listed.items())
    assert "--tool-call-parser hermes" in card.text
    assert json.loads((folder / "tokenizer_config.json").read_text())["tool_parser_type"] == "json_tools"
    for said in (
        *(BASE, "| train | data/quickstart/train.jsonl |  |  | first 32 |", "| adapter | LoraConfig |", "| r | 4 |"),
        *("| checkpoint | epoch 0, after 2 optimizer steps |", "| exported weights | bfloat16 |"),
        *("| val/exact\\_match | 0.", "--tool-call-parser hermes", "transformers serve"),
    ):
        assert said in card.text, said
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_adapter_alone(trained, tmp_path):
    folder = exported(trained, tmp_path / "adapter", "--merge=false")
    assert "model.safetensors" not in {path.name for path in folder.iterdir()}
    assert ModelCard.load(folder / "README.md").data.library_name == "peft"
    merged = AutoModelForCausalLM.from_pretrained(exported(trained, tmp_path / "merged"))
    ids = AutoTokenizer.from_pretrained(folder)("<start_of_turn>user\n<tools> hi", return_tensors="pt").input_ids
    for adapted in (AutoPeftModelForCausalLM.from_pretrained(folder), plain_peft(folder)):
        torch.testing.assert_close(logits(adapted, ids), logits(merged, ids), atol=1e-4, rtol=1e-4)


def plain_peft(folder: Path) -> PeftModel:
    """The base as it comes, with room for the new tokens, and plain PEFT."""
    base = AutoModelForCausalLM.from_pretrained(BASE)
    base.resize_token_embeddings(len(AutoTokenizer.from_pretrained(folder)))
    return PeftModel.from_pretrained(base, folder)


def test_an_adapter_lies_beside_each_checkpoint_and_goes_with_it(tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "trainer:\n  callbacks:\n    - class_path: fc_lightning.callbacks.SaveAdapter\n"
        "    - class_path: lightning.pytorch.callbacks.ModelCheckpoint\n"
        "      init_args: {monitor: step, mode: max, save_top_k: 2, every_n_train_steps: 1, save_last: true}\n"
    )
    main(["fit", *command(tmp_path, "--config", str(overlay), "--data.validation=null", "--trainer.max_steps=4")])
    checkpoints = sorted((tmp_path / "runs").glob("**/*.ckpt"))
    assert len(checkpoints) == 3  # the two newest and the last; older ones are gone, with their adapters
    assert sorted(checkpoints[0].parent.glob("*.adapter")) == [adapter_folder(path) for path in checkpoints]
    for path in checkpoints:
        saved = torch.load(path, weights_only=True)["state_dict"]
        adapted = plain_peft(adapter_folder(path)).state_dict()
        mine = {name.removeprefix("model."): tensor for name, tensor in saved.items()}
        assert mine
        for name, tensor in mine.items():
            torch.testing.assert_close(adapted[name], tensor, rtol=0, atol=0)


def test_best_is_the_best_and_is_found_where_a_run_was_moved_to(trained, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(trained / "runs", moved / "runs")
    (last,) = (moved / "runs").glob("**/last.ckpt")
    state = torch.load(last, weights_only=True)
    (name,) = [name for name in state["callbacks"] if name.startswith("ModelCheckpoint{'monitor': 'val/exact_match'")]
    named = Path(state["callbacks"][name]["best_model_path"]).name
    state["callbacks"][name]["best_model_path"] = f"gone/{named}"
    AtomicCheckpointIO().save_checkpoint(state, last)
    exported(moved, tmp_path / "one")
    (last.parent / named).unlink()
    with pytest.raises(SystemExit):
        exported(moved, tmp_path / "two")
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_broken_newest_checkpoint_is_passed_over(trained, tmp_path, capsys, which):
    shutil.copytree(trained / "runs", tmp_path / "runs")
    (last,) = (tmp_path / "runs").glob("**/last.ckpt")
    last.write_bytes(last.read_bytes()[:-100])
    before = next(path for path in last.parent.glob("*.ckpt") if path != last)
    exported(tmp_path, tmp_path / "out", f"--ckpt_path={which}", "--merge=false")
    out = capsys.readouterr().out
    assert out.splitlines()[-1].endswith(f"{before.name} → {tmp_path / 'out'}")
    before.write_bytes(b"")
    assert "no checkpoint found" in refused(capsys, tmp_path, tmp_path / "none", f"--ckpt_path={which}")


def test_an_existing_folder_is_left_alone(trained, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    assert "already exists" in refused(capsys, trained, tmp_path / "model")
    assert (tmp_path / "model" / "mine.txt").read_text() == "mine"


def other_base(tmp_path: Path, width: int = 32) -> Path:
    """The tiny base with two words of its vocabulary exchanged, or of another width."""
    folder = tmp_path / "base"
    shutil.copytree(BASE, folder)
    if width != 32:
        config = json.loads((folder / "config.json").read_text()) | {"hidden_size": width}
        (folder / "config.json").write_text(json.dumps(config))
        AutoModelForCausalLM.from_config(
            type(AutoModelForCausalLM.from_pretrained(BASE).config)(**config)
        ).save_pretrained(folder)
        return folder
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = [word for word in vocabulary if len(word) == 1 and word.isascii() and word.isalpha()][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def test_a_base_with_another_vocabulary(trained, tmp_path, capsys):
    error = refused(capsys, trained, tmp_path / "model", f"--model.base={other_base(tmp_path)}")
    assert "a different vocabulary" in error
    assert "model.base" in error


def test_a_base_of_another_size(trained, tmp_path, capsys):
    error = refused(capsys, trained, tmp_path / "model", f"--model.base={other_base(tmp_path, 64)}")
    assert "the shape of" in error


def test_a_checkpoint_that_is_none(trained, tmp_path, capsys):
    (tmp_path / "broken.ckpt").write_bytes(b"PK\x03\x04 not really")
    assert "broken.ckpt: cannot be read" in refused(
        capsys, trained, tmp_path / "model", f"--ckpt_path={tmp_path / 'broken.ckpt'}"
    )


def test_full_fine_tuning_has_no_adapter(trained, tmp_path, capsys):
    assert "--merge false" in refused(capsys, trained, tmp_path / "model", "--merge=false", "--model.peft=null")


@pytest.mark.parametrize("limit", [40_000, 150_000], ids=["tokenizer", "weights"])
def test_a_full_disk(trained, tmp_path, capsys, limit):
    """No file may grow past a limit, as where the disk is full; whichever library writes it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        error = refused(capsys, trained, tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ": could not be written: " in error
    assert error.endswith("bytes are free there; no files were left behind")


def test_an_interrupted_export_leaves_nothing_that_looks_whole(tmp_path):
    class Interrupt(BaseException):
        pass

    def begun() -> None:
        with atomic_folder(tmp_path / "model") as partial:
            (partial / "config.json").write_text("{}")
            raise Interrupt

    with pytest.raises(Interrupt):
        begun()
    assert not list(tmp_path.iterdir())
    child = os.fork()
    if not child:
        with atomic_folder(tmp_path / "model") as partial:
            (partial / "config.json").write_text("{}")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["model.partial"]
    with atomic_folder(tmp_path / "model") as partial:
        assert not list(partial.iterdir())  # what was left of the last time is gone
        (partial / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_push_to_hub(trained, tmp_path, monkeypatch, capsys):
    seen = {}

    def upload(self, **arguments):
        seen.update(arguments, names={path.name for path in Path(arguments["folder_path"]).iterdir()})

    def create(self, name, **arguments):
        seen["private"] = arguments["private"]
        return f"https://hub.example/{name}"

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    exported(trained, tmp_path / "model", "--push_to_hub=me/tiny")
    assert seen["repo_id"] == "me/tiny"
    assert seen["private"] is True
    assert {"model.safetensors", "README.md", "chat_template.jinja"} <= seen["names"]
    assert "https://hub.example/me/tiny" in capsys.readouterr().out


def test_a_hub_that_cannot_be_reached_leaves_the_export(trained, tmp_path, monkeypatch, capsys):
    def create(self, name, **arguments):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(HfApi, "create_repo", create)
    with pytest.raises(SystemExit):
        exported(trained, tmp_path / "model", "--push_to_hub=me/tiny")
    assert "hf upload me/tiny" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert "--push_to_hub" in refused(capsys, trained, tmp_path / "other", "--push_to_hub=a/b/c")
