"""Training on preferences: the loss of a step is that of a plain formula, however its pairs are spread."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.helpers.checkpoints import same, state_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.cli.lightning_cli import main
from fc_lightning.conversation.types import Message
from fc_lightning.data import FunctionCallingDataModule, Source
from fc_lightning.data.augmentation import Augmentation
from fc_lightning.data.formats import read_row

TINY = "tests/models/tiny_gemma2"
TOOL = {"type": "function", "function": {"name": "clock", "description": "Time.", "parameters": {"type": "object"}}}
CITIES = ("Rome", "Oslo", "Bern", "Paris", "Madrid", "Lima")


def call(city: str) -> dict:
    function = {"name": "clock", "arguments": {"city": city, "note": "now " * len(city)}}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def rows() -> list[dict]:
    """Four pairs, a row without a rejected turn, and a pair of two turns."""
    out = []
    for number, city in enumerate(CITIES):
        ask = [{"role": "user", "content": f"What is the time in {city}?"}]
        if number == 5:
            ask = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello, you."}, *ask]
        wrong = call("Nowhere") if number % 2 else {"role": "assistant", "content": "I cannot tell, sorry about that."}
        row = {"id": city, "messages": ask, "tools": [TOOL], "chosen": call(city), "rejected": wrong}
        if number == 4:
            row = {"id": city, "messages": [*ask, call(city)], "tools": [TOOL]}
        out.append(row)
    return out


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


def train(run, data: Path, *arguments: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    folder = run(
        "fit",
        *("--model.special_tokens=[]", "--model.preference={weight: 0.5, beta: 2.5, margin: 0.3}"),
        *(f"--data.train=[{{path: {data}, limit: null}}]", "--data.validation=null", "--data.seed=null"),
        *("--trainer.max_epochs=2", "--trainer.enable_checkpointing=false", "--model.warmup=0.0"),
        *("--trainer.callbacks=[{class_path: fc_lightning.callbacks.SaveAdapter}]", *arguments),
    )
    lines = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    losses = [float(line["train/loss"]) for line in lines if line["train/loss"]]
    return losses, load_file(folder / "adapter" / "adapter_model.safetensors")


def plain_loss(weight: float, beta: float, margin: float) -> float:
    """Over all rows, each document alone through transformers, token by token."""
    model = AutoModelForCausalLM.from_pretrained(TINY, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    template = ChatTemplate(tokenizer)

    def log_probs(messages, conversation) -> list[float]:
        """Of the supervised tokens of the last turn, and of all turns before it."""
        rendered = template.render(template.messages(messages), conversation)
        found = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
        with torch.no_grad():
            logits = model(torch.tensor([found.input_ids])).logits[0].double().log_softmax(-1)
        turns = []
        for begin, end in rendered.supervised_spans:
            places = [n for n, (start, _) in enumerate(found.offset_mapping) if begin <= start < end]
            turns.append([logits[n - 1, found.input_ids[n]].item() for n in places])
        return turns

    total, tokens = 0.0, 0
    for row in rows():
        conversation = read_row(row)
        *earlier, chosen = log_probs(conversation, conversation)
        total -= sum(map(sum, [*earlier, chosen]))
        tokens += sum(map(len, [*earlier, chosen]))
        if conversation.rejected is None:
            continue
        other = type(conversation)("", (*conversation.messages[:-1], conversation.rejected), conversation.tools)
        rejected = log_probs(other, other)[-1]
        difference = beta * (sum(chosen) / len(chosen) - sum(rejected) / len(rejected)) - margin
        total += weight * len(chosen) * math.log1p(math.exp(-difference))
    return total / tokens


def test_the_loss_of_a_step_is_that_of_the_plain_formula_however_pairs_are_spread(run, data):
    whole = train(run, data, "--data.packing=false", "--data.batch_size=6", "--trainer.accumulate_grad_batches=1")
    assert whole[0][0] == pytest.approx(plain_loss(0.5, 2.5, 0.3), rel=1e-5)
    single = train(run, data, "--data.packing=false", "--data.batch_size=1", "--trainer.accumulate_grad_batches=6")
    packed = train(run, data, "--data.max_length=8192", "--trainer.accumulate_grad_batches=1", "--model.head_chunk=16")
    for losses, adapter in (single, packed):
        assert losses == pytest.approx(whole[0], rel=1e-5)
        for name, weights in whole[1].items():
            assert (adapter[name] - weights).norm() <= 1e-5 * weights.norm(), name
    assert whole[0][1] < whole[0][0]


def arguments(data: Path, folder: Path, *more: str) -> list[str]:
    """A run of two epochs with a checkpoint after each step, two pairs a step."""
    checkpoint = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"dirpath": str(folder), "every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}"},
    }
    return [
        *("fit", "--config=configs/debug/tiny.yaml", f"--trainer.callbacks={json.dumps([checkpoint])}"),
        *("--model.preference.weight=0.5", f"--data.train=[{{path: {data}, limit: null}}]", "--data.validation=null"),
        *("--data.packing=false", "--trainer.max_epochs=2", f"--trainer.logger.init_args.save_dir={folder / 'runs'}"),
        *more,
    ]


@pytest.mark.slow
def test_two_ranks_and_resumed_runs_end_with_the_same_weights(data, tmp_path):
    main(arguments(data, tmp_path / "whole", "--trainer.accumulate_grad_batches=2"))
    whole = state_of(tmp_path / "whole" / "step=6.ckpt")
    main(
        arguments(
            data,
            tmp_path / "resumed",
            "--trainer.accumulate_grad_batches=2",
            f"--ckpt_path={tmp_path / 'whole' / 'step=4.ckpt'}",
        )
    )
    assert same(state_of(tmp_path / "resumed" / "step=6.ckpt"), whole)
    job = arguments(data, tmp_path / "ranks", "--trainer.accumulate_grad_batches=1", "--trainer.devices=2")
    (tmp_path / "jobs.json").write_text(json.dumps([[*job, "--trainer.strategy=ddp"]]))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command = [*launch, "-m", "tests.helpers.sweep", str(tmp_path / "jobs.json")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    ranks = state_of(tmp_path / "ranks" / "step=6.ckpt")
    for name, weights in whole["state_dict"].items():
        assert (ranks["state_dict"][name] - weights).norm() <= 1e-5 * weights.norm(), name


def data_module(data: Path, **settings) -> FunctionCallingDataModule:
    settings = {"pairs": True, "max_length": 2048, "seed": None, "packing": False, **settings}
    module = FunctionCallingDataModule(TINY, [Source(str(data))], cache_dir=str(data.parent / "cache"), **settings)
    if not settings.get("streaming"):
        module.setup("fit")
    return module


def test_pairs_are_in_prepared_and_in_streamed_batches(data):
    prepared = {batch["ids"][0][0]: batch for batch in data_module(data).train_dataloader()}
    assert {id for id, batch in prepared.items() if batch.get("num_pairs")} == set(CITIES) - {"Madrid"}
    stream = iter(data_module(data, streaming=True, seed=0, shuffle_buffer=6).train_dataloader())
    streamed = [next(stream) for _ in CITIES]
    for batch in streamed:
        same = prepared[batch["ids"][0][0]]
        assert torch.equal(batch["input_ids"], same["input_ids"])
        assert batch.get("num_pairs") == same.get("num_pairs")
        if "pair_side" in same:
            assert torch.equal(batch["pair_side"], same["pair_side"])
            assert (batch["weights"][batch["pair_side"] == 1] == 0).all()
    without = next(iter(data_module(data, pairs=False).train_dataloader()))
    assert "num_pairs" not in without


def test_a_pair_that_is_too_long_is_trained_on_without_its_rejected_turn(data):
    plain = data_module(data, pairs=False)
    lengths = [len(ids) for ids in plain.prepared["train"].documents["input_ids"]]
    module = data_module(data, max_length=max(lengths))
    documents = module.prepared["train"].documents
    assert len(documents) == len(CITIES)
    assert not any(documents["rejected_ids"])
    assert len(module.prepared["train"].report.cut) == 5


def test_augmented_pairs_stay_pairs(data):
    module = data_module(data, augmentation=Augmentation(mask_names=1.0))
    (folder,) = [module.prepare_epoch(0)]
    from fc_lightning.data.augmented_epochs import open_documents

    documents = open_documents(folder)
    tokenizer = module.template.tokenizer
    assert sum(bool(ids) for ids in documents["rejected_ids"]) == 5
    for document in documents:
        texts = [tokenizer.decode(document[name] or []) for name in ("input_ids", "rejected_ids")]
        assert not any('"clock"' in text for text in texts)


def test_an_unusable_rejected_side_is_noticed_and_left_out():
    row = rows()[0]
    assert read_row(row).rejected == Message("assistant", "I cannot tell, sorry about that.")
    for rejected in (row["chosen"], "<tool_call>{oops</tool_call>"):
        conversation = read_row({**row, "rejected": rejected})
        assert conversation.rejected is None
        assert "rejected side is not used" in conversation.notices[-1][1]
