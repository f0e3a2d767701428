"""Streams: every row once a pass, shares disjoint, and stopping anywhere changes nothing."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch

from fc_lightning.data import DataError, FunctionCallingDataModule, Source
from fc_lightning.data.collator import IGNORE
from fc_lightning.data.streaming import StreamingPacks

BASE = "tests/models/tiny_gemma2"


def write(path: Path, count: int, broken: int = 0, words: int = 12) -> Source:
    """Rows of different lengths; every `broken`-th is no JSON."""
    with path.open("w") as file:
        for number in range(count):
            turns = [
                {"from": "human", "value": f"How much is {number}?" + " really" * (number * 7 % words)},
                {"from": "gpt", "value": f"It is {number}."},
            ]
            row = json.dumps({"id": f"{path.stem}{number}", "conversations": turns})
            file.write(("{oops" if broken and number % broken == 0 else row) + "\n")
    return Source(str(path))


def data_of(*sources, **settings) -> FunctionCallingDataModule:
    settings = {"max_length": 128, "shuffle_buffer": 16, "streaming": True, "batch_size": 2, **settings}
    return FunctionCallingDataModule(BASE, list(sources), **settings)


def ids_of(batch) -> list[list[str]]:
    return batch["ids"]


def flat(batches) -> list[str]:
    return [one for batch in batches for pack in batch for one in pack]


def stream_of(data, rank=0, ranks=1) -> StreamingPacks:
    stream = data.train_dataloader().dataset
    stream.rank, stream.num_replicas = rank, ranks
    return stream


def take(data, count: int) -> list[list[list[str]]]:
    """The next micro-batches, taken as Lightning does; more of them are fetched than taken."""
    taken = []
    for batch in islice(data.train_dataloader(), count + 1):
        if len(taken) < count:
            taken.append(ids_of(data.on_before_batch_transfer(batch, 0)))
            assert "stream" not in batch
    return taken


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("packing", [True, False])
def test_a_stream_stopped_anywhere_goes_on_with_the_next_micro_batch(tmp_path, packing, weighted):
    sources = [write(tmp_path / "a.jsonl", 40), write(tmp_path / "b.jsonl", 25)]
    if weighted:
        sources = [Source(one.path, weight=weight) for one, weight in zip(sources, (3.0, 1.0), strict=True)]
    whole = take(data_of(*sources, packing=packing), 60)
    for stop in range(0, 40, 3 if packing else 7):
        first = data_of(*sources, packing=packing)
        assert take(first, stop) == whole[:stop]
        state = json.loads(json.dumps(first.state_dict()), object_hook=with_numbers)
        second = data_of(*sources, packing=packing)
        second.load_state_dict(state)
        assert take(second, 20) == whole[stop : stop + 20]


def with_numbers(value: dict) -> dict:
    """JSON has no numbers as keys."""
    return {int(key) if key.isdigit() else key: item for key, item in value.items()}


def test_the_same_loader_goes_on_in_the_next_epoch(tmp_path):
    source = write(tmp_path / "a.jsonl", 60)
    whole = take(data_of(source), 24)
    data = data_of(source)
    loader = data.train_dataloader()
    epochs = [[ids_of(data.on_before_batch_transfer(b, 0)) for b in islice(loader, 8)] for _ in range(3)]
    assert [batch for epoch in epochs for batch in epoch] == whole


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_workers_go_on_behind_what_was_taken_not_behind_what_was_fetched(tmp_path, stop):
    sources = [write(tmp_path / "a.jsonl", 50), write(tmp_path / "b.jsonl", 31)]
    whole = take(data_of(*sources, num_workers=2), 16)
    first = data_of(*sources, num_workers=2)
    assert take(first, stop) == whole[:stop]
    second = data_of(*sources, num_workers=2)
    second.load_state_dict(first.state_dict())
    assert take(second, 16 - stop) == whole[stop:]


def test_a_pass_is_every_row_once_and_passes_differ(tmp_path):
    sources = [write(tmp_path / "a.jsonl", 40), write(tmp_path / "b.jsonl", 25)]
    stream = stream_of(data_of(*sources))
    passes: list[list[str]] = [[], [], []]
    for batch in stream:
        nth = (batch.position["counts"]["rows"] - 1) // 65  # of its block's last row
        passes[nth] += [document["id"] for pack in batch.packs for document in pack]
        if nth == 2:
            break
    everything = sorted([f"a{n}" for n in range(40)] + [f"b{n}" for n in range(25)])
    assert sorted(passes[0]) == sorted(passes[1]) == everything
    assert passes[0] != passes[1]
    assert passes[0] != everything


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_see_disjoint_rows_and_together_all(tmp_path, ranks):
    source = write(tmp_path / "a.jsonl", 100)
    seen = []
    for rank in range(ranks):
        stream = stream_of(data_of(source), rank, ranks)
        batches = []
        for batch in stream:
            if batch.position["counts"]["rows"] > 100 // ranks + 1:
                break  # the next pass
            batches.append([[document["id"] for document in pack] for pack in batch.packs])
        seen.append(flat(batches))
    assert all(len(set(ids)) == len(ids) for ids in seen)
    assert sorted(one for ids in seen for one in ids) == sorted(f"a{n}" for n in range(100))


def test_weights_are_kept_over_ten_thousand_draws(tmp_path):
    sources = [
        Source(write(tmp_path / f"{name}.jsonl", count).path, weight=weight)
        for name, count, weight in (("a", 300, 1.0), ("b", 90, 2.0), ("c", 20, 1.5))
    ]
    drawn = flat(take(data_of(*sources, shuffle_buffer=500, packing=False, batch_size=100), 110))[:10_000]
    assert len(drawn) == 10_000
    for name, share in (("a", 1 / 4.5), ("b", 2 / 4.5), ("c", 1.5 / 4.5)):
        assert sum(one.startswith(name) for one in drawn) / len(drawn) == pytest.approx(share, abs=0.01)


def test_streamed_batches_are_those_of_prepared_data(tmp_path):
    """The same documents, tokens and labels as without streaming."""
    source = write(tmp_path / "a.jsonl", 30)
    settings = {"packing": False, "batch_size": 1}
    plain = FunctionCallingDataModule(BASE, [source], max_length=128, cache_dir=str(tmp_path / "cache"), **settings)
    plain.setup("fit")
    expected = {batch["ids"][0][0]: batch for batch in plain.train_dataloader()}
    streamed = {batch["ids"][0][0]: batch for batch in islice(data_of(source, **settings).train_dataloader(), 30)}
    assert streamed.keys() == expected.keys()
    for key, batch in streamed.items():
        assert all(torch.equal(batch[name], expected[key][name]) for name in ("input_ids", "position_ids", "labels"))
        assert (batch["labels"] != IGNORE).any()


def test_packs_of_a_stream_are_full(tmp_path):
    source = write(tmp_path / "a.jsonl", 400, words=20)
    loader = data_of(source, shuffle_buffer=200, batch_size=1).train_dataloader()
    lengths = [batch["num_tokens"] for batch in islice(loader, 60)]
    assert max(lengths) <= 128
    assert sum(lengths) / len(lengths) > 0.9 * 128


def test_what_stops_a_stream(tmp_path):
    broken = write(tmp_path / "broken.jsonl", 1000, broken=10)
    with pytest.raises(DataError, match=r"rows cannot be read, more than 5.0% .*\n.*broken.jsonl:.*not JSON"):
        take(data_of(broken), 500)
    assert len(take(data_of(broken, max_unreadable=0.2), 100)) == 100
    few = write(tmp_path / "few.jsonl", 1)
    with pytest.raises(DataError, match=r"more rows than ranks × workers"):
        next(iter(stream_of(data_of(few), rank=1, ranks=2)))
    long = write(tmp_path / "long.jsonl", 5)
    with pytest.raises(DataError, match=r"none of the 5 rows .*\n.*`data.max_length` is 8 tokens"):
        next(iter(stream_of(data_of(long, max_length=8))))
    weighted = [Source(few.path, weight=1.0), Source(broken.path, weight=1.0)]
    with pytest.raises(DataError, match="every source needs more rows than"):
        next(iter(stream_of(data_of(*weighted, max_unreadable=1.0), rank=1, ranks=2)))
    with pytest.raises(DataError, match="nothing can be held out from a stream"):
        data_of(broken, validation=0.1).setup("fit")
    first, second = data_of(broken), data_of(broken, num_workers=2)
    first.train_dataloader()
    second.load_state_dict(first.state_dict())
    with pytest.raises(DataError, match=r"streamed by 1 processes .* this run has 2"):
        second.train_dataloader()


@pytest.mark.slow
def test_training_streams_and_goes_on_from_a_checkpoint(tmp_path, run):
    write(tmp_path / "a.jsonl", 60, broken=30)
    data = ["--data.train", json.dumps([{"path": str(tmp_path / "a.jsonl")}]), "--data.streaming=true"]
    more = ["--data.max_length=128", "--data.shuffle_buffer=8", "--data.validation=null"]
    steps = ["--trainer.max_epochs=-1", "--trainer.callbacks=null"]
    with pytest.raises(SystemExit):
        run("fit", *data, *more, *steps)
    checkpoint = "--trainer.callbacks+={class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
    checkpoint += "init_args: {save_last: true, every_n_train_steps: 1, save_top_k: -1, filename: '{step}'}}"
    whole = run("fit", *data, *more, *steps, "--trainer.max_steps=4", checkpoint)
    half = next(whole.rglob("step=2.ckpt"))
    resumed = run("fit", *data, *more, *steps, "--trainer.max_steps=4", checkpoint, f"--ckpt_path={half}")
    states = [torch.load(next(one.rglob("last.ckpt")), weights_only=False) for one in (whole, resumed)]
    assert states[0]["FunctionCallingDataModule"]["stream"]["consumed"] == 8  # two micro-batches a step
    assert states[0]["FunctionCallingDataModule"] == states[1]["FunctionCallingDataModule"]
    for name, weight in states[0]["state_dict"].items():
        assert torch.equal(weight, states[1]["state_dict"][name]), name
