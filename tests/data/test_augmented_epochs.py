"""Augmented epochs: other documents in each epoch, the same rows in all, whoever prepares them, wherever they stop."""

import json
from itertools import islice
from pathlib import Path

import pytest

from fc_lightning.data import DataError, FunctionCallingDataModule, Source
from fc_lightning.data.augmentation import Augmentation
from fc_lightning.data.encoding import EncodingSettings, augment_documents, encode_documents
from fc_lightning.data.formats import read_row
from fc_lightning.data.row_report import RowReport

BASE = "tests/models/tiny_gemma2"
TRAIN = "data/quickstart/train.jsonl"
ALL = Augmentation(shuffle_tools=0.5, distractors=0.5, drop_tool=0.2, mask_names=0.5, join_requests=0.3)


def data_of(tmp_path: Path, limit: int = 40, **settings) -> FunctionCallingDataModule:
    settings = {"augmentation": ALL, "max_length": 1024, "cache_dir": str(tmp_path / "cache"), **settings}
    return FunctionCallingDataModule(BASE, [Source(TRAIN, limit=limit)], [Source(TRAIN, limit=12)], **settings)


def epochs_of(data: FunctionCallingDataModule, count: int, rank: int = 0, ranks: int = 1) -> list[dict[str, list[int]]]:
    """The documents that each epoch trains on, by id; labels and positions follow from them."""
    if "train" not in data.prepared and not data.streaming:
        data.setup("fit")
    loader = data.train_dataloader()
    loader.sampler.rank, loader.sampler.num_replicas = rank, ranks
    epochs = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        epochs.append(dict(documents_in(loader)))
    return epochs


def documents_in(batches):
    for batch in batches:
        names = (id for pack in batch["ids"] for id in pack)
        real = [(row, start, end) for row, start, end in batch["documents"]]
        by_row = [[span for span in real if span[0] == row] for row in range(len(batch["ids"]))]
        spans = [span for row, pack in zip(by_row, batch["ids"], strict=True) for span in row[: len(pack)]]
        for id, (row, start, end) in zip(names, spans, strict=True):
            yield id, batch["input_ids"][row, start:end].tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_epochs_have_the_same_rows_in_other_forms(tmp_path, workers):
    first, second, again = (
        *epochs_of(data_of(tmp_path, num_workers=workers), 2),
        epochs_of(data_of(tmp_path / "elsewhere"), 1)[0],
    )
    plain = epochs_of(data_of(tmp_path, augmentation=None), 1)[0]
    assert first == again
    assert first.keys() == second.keys() == plain.keys()
    assert len(plain) == 40
    for one, other in ((first, second), (first, plain), (second, plain)):
        assert sum(one[id] != other[id] for id in plain) > 25
    assert 0 < sum(first[id] == plain[id] for id in plain) < 25  # shares below 1 leave some rows as they are


def test_a_row_whose_augmented_form_is_too_long_keeps_its_own(tmp_path):
    plain = epochs_of(data_of(tmp_path, augmentation=None), 1)[0]
    longest = max(map(len, plain.values()))
    augmented = epochs_of(data_of(tmp_path, augmentation=Augmentation(distractors=1.0), max_length=longest), 1)[0]
    assert augmented.keys() == plain.keys()
    grown = [id for id in plain if len(augmented[id]) > len(plain[id])]
    assert 5 < len(grown) < len(plain)
    assert all(augmented[id] == plain[id] for id in set(plain) - set(grown))
    assert max(map(len, augmented.values())) <= longest


def test_requests_are_joined_within_an_epoch(tmp_path):
    data = data_of(tmp_path, augmentation=Augmentation(join_requests=1.0))
    joined, plain = epochs_of(data, 1)[0], epochs_of(data_of(tmp_path, augmentation=None), 1)[0]
    (call,) = data.template.tokenizer.encode("<tool_call>\n", add_special_tokens=False)[:1]
    more = [id for id in plain if joined[id].count(call) > plain[id].count(call)]
    assert len(more) > 20
    assert all(joined[id] == plain[id] for id in plain.keys() - set(more))


def test_ranks_share_an_epoch(tmp_path):
    (whole,) = epochs_of(data_of(tmp_path), 1)
    shares = [epochs_of(data_of(tmp_path), 1, rank, 2)[0] for rank in range(2)]
    assert shares[0].keys().isdisjoint(shares[1])
    assert {**shares[0], **shares[1]} == whole


def test_every_epoch_has_as_many_micro_batches(tmp_path):
    data = data_of(tmp_path, limit=80, augmentation=Augmentation(distractors=1.0, drop_tool=0.5))
    data.setup("fit")
    loader = data.train_dataloader()
    numbers = []
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        numbers.append(sum(1 for _ in loader))
    assert numbers == [len(loader)] * 4


def test_only_training_rows_are_varied(tmp_path):
    augmented, plain = data_of(tmp_path), data_of(tmp_path, augmentation=None)
    for data in (augmented, plain):
        data.setup("fit")
    for split in ("validation", "train"):  # what is reported and audited is the rows themselves
        assert augmented.prepared[split].digest == plain.prepared[split].digest


def test_a_streamed_pass_is_the_prepared_epoch(tmp_path):
    """Without tools of other rows, which a stream takes from its buffer."""
    settings = {"augmentation": Augmentation(shuffle_tools=0.5, mask_names=0.5), "packing": False}
    prepared = epochs_of(data_of(tmp_path, **settings), 2)
    stream = data_of(tmp_path, streaming=True, shuffle_buffer=16, **settings).train_dataloader()
    batches = iter(stream)
    for epoch in prepared:
        assert dict(documents_in(islice(batches, 40))) == epoch


@pytest.mark.parametrize("weighted", [False, True])
def test_an_augmented_stream_stopped_anywhere_continues_with_the_next_micro_batch(tmp_path, weighted):
    def data() -> FunctionCallingDataModule:
        one = data_of(tmp_path, streaming=True, shuffle_buffer=16, batch_size=2)
        weights = (2.0, 1.0) if weighted else (None, None)
        limits = zip((30, 20), weights, strict=True)
        one.sources["train"] = [Source(TRAIN, limit=limit, weight=weight) for limit, weight in limits]
        return one

    def take(data: FunctionCallingDataModule, count: int) -> list[list[list[int]]]:
        batches = islice(data.train_dataloader(), count)
        return [data.on_before_batch_transfer(batch, 0)["input_ids"].tolist() for batch in batches]

    whole = take(data(), 30)
    for stop in (1, 7, 12):
        first, second = data(), data()
        assert take(first, stop) == whole[:stop]
        second.load_state_dict(first.state_dict())
        assert take(second, 30 - stop) == whole[stop:]


def test_a_checkpoint_is_not_resumed_with_another_augmentation(tmp_path):
    def module(augmentation):
        data = data_of(tmp_path, augmentation=augmentation)
        data.setup("fit")
        data.train_dataloader()
        return data

    from fc_lightning.data.training_order import check_training_order, training_order

    one, same, other, none = (module(what) for what in (ALL, ALL, Augmentation(mask_names=0.5), None))
    check_training_order(training_order(one), training_order(same))
    for changed in (other, none):
        with pytest.raises(DataError, match="cannot be resumed"):
            check_training_order(training_order(one), training_order(changed))


def test_verbatim_rows_are_not_varied(tmp_path):
    for settings in ({"augmentation": ALL}, {"augmentation": None, "perturbations": ["mask_names"]}):
        with pytest.raises(DataError, match=r"verbatim rendering keeps the rows' text"):
            data_of(tmp_path, render="verbatim", **settings)


def test_sources_with_the_same_places_keep_their_rows():
    """As two configurations of one dataset on the Hub have them."""
    template = data_of(Path("unused")).template
    settings = EncodingSettings(max_length=1024, augmentation=Augmentation(shuffle_tools=1.0))
    rows = [json.loads(line) for line in Path(TRAIN).read_text(encoding="utf-8").splitlines()[:2]]
    chunk = [(source, "user/name:1", read_row(row, default_id=f"row {source}")) for source, row in enumerate(rows)]
    plain = list(encode_documents(chunk, template, settings, RowReport()))
    assert [one["id"] for one in augment_documents(plain, chunk, template, settings)] == [one["id"] for one in plain]


def test_perturbed_prompts_come_after_plain_ones_and_not_within_training(tmp_path):
    data = data_of(tmp_path, augmentation=None, perturbations=["mask_names", "drop_tool"])
    data.setup("validate")
    prompts = data.prepared["validation"].prompts
    names = prompts["perturbation"][:]
    count = names.count("")
    assert names[: 2 * count] == [""] * count + ["mask_names"] * count
    assert set(names[2 * count :]) == {"drop_tool"}
    for row, plain in zip(prompts.select(range(count, 2 * count)), prompts, strict=False):
        offered = {tool["function"]["name"] for tool in json.loads(row["tools"])}
        assert offered.isdisjoint(tool["function"]["name"] for tool in json.loads(plain["tools"]))
        for call, original in zip(json.loads(row["expected"]), json.loads(plain["expected"]), strict=True):
            assert call["name"] in offered
            assert list(call["arguments"].values()) == list(original["arguments"].values())
    dropped = prompts.select(range(2 * count, len(names)))
    assert all(json.loads(row["expected"]) == [] for row in dropped)
    assert len(set(dropped["id"][:])) == len(dropped)
