"""Plans of packs against a naive plan and the best one; batches against tensors written by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fc_lightning.data import FunctionCallingDataModule, Source
from fc_lightning.data.collator import PackingCollator
from fc_lightning.data.packing import plan_packs

PAD = 0
_ = -100  # no label


def naive_fills(lengths, capacity):
    """How full best-fit decreasing makes its packs: of equally full ones it does not matter which is taken."""
    fills = []
    for length in sorted(lengths, reverse=True):
        fitting = [nth for nth, fill in enumerate(fills) if fill + length <= capacity]
        if fitting:
            fills[max(fitting, key=fills.__getitem__)] += length
        else:
            fills.append(length)
    return fills


def fewest(lengths, capacity, rooms=()):
    """The fewest packs that can hold the documents, by trying every place of each."""
    if not lengths:
        return len(rooms)
    first, *rest = lengths
    best = fewest(rest, capacity, (*rooms, capacity - first))
    for room in {room for room in rooms if room >= first}:
        nth = rooms.index(room)
        best = min(best, fewest(rest, capacity, (*rooms[:nth], room - first, *rooms[nth + 1 :])))
    return best


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=80), st.integers(50, 120))
def test_plan_is_best_fit_decreasing(lengths, capacity):
    packs = plan_packs(lengths, capacity)
    assert sorted(document for pack in packs for document in pack) == list(range(len(lengths)))
    fills = [sum(lengths[document] for document in pack) for pack in packs]
    assert all(0 < fill <= capacity for fill in fills)
    assert sorted(fills) == sorted(naive_fills(lengths, capacity))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_plan_is_close_to_the_best(lengths):
    assert len(plan_packs(lengths, 20)) <= 11 / 9 * fewest(lengths, 20) + 1


def test_plan_of_many_documents_fills_the_packs():
    lengths = [37 * nth % 101 + 1 for nth in range(2000)]
    assert len(plan_packs(lengths, 1000)) <= 11 / 9 * -(-sum(lengths) // 1000) + 1


def test_plan_refuses_what_no_pack_holds():
    assert plan_packs([], 5) == []
    assert plan_packs([5], 5) == [[0]]
    with pytest.raises(ValueError, match="document 1 has 6 tokens, but a pack holds 5"):
        plan_packs([5, 6], 5)


def document(name, ids, *supervised):
    return {"id": name, "input_ids": ids, "supervised": list(supervised)}


# Prompts of two tokens and of one; two supervised turns in `b`; `c` is supervised from its first token.
A = document("a", [11, 12, 13, 14], 2, 4)
B = document("b", [21, 22, 23, 24, 25], 1, 2, 3, 5)
C = document("c", [31, 32], 0, 2)


def test_batch_of_two_packs():
    batch = PackingCollator(PAD)([[A, C], [B]])
    assert {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in batch.items()} == {
        "input_ids": [[11, 12, 13, 14, 31, 32], [21, 22, 23, 24, 25, PAD]],
        "position_ids": [[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 4, 0]],
        "labels": [[_, 13, 14, _, 32, _], [22, _, 24, 25, _, _]],
        "supervised_index": [1, 2, 4, 6, 8, 9],
        "documents": [(0, 0, 4), (0, 4, 6), (1, 0, 5), (1, 5, 6)],
        "num_supervised": 6,
        "num_tokens": 11,
        "ids": [["a", "c"], ["b"]],
    }
    assert all(batch[key].dtype == torch.int64 for key in ("input_ids", "position_ids", "labels", "supervised_index"))


def test_batch_padded_to_a_length():
    batch = PackingCollator(9, pad_to=4)([[C]])
    assert batch["input_ids"].tolist() == [[31, 32, 9, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1]]
    assert batch["labels"].tolist() == [[32, _, _, _]]
    assert batch["documents"] == [(0, 0, 2), (0, 2, 4)]
    assert batch["num_tokens"] == 2
    assert PackingCollator(9, pad_to=1)([[A]])["input_ids"].shape == (1, 4)
    assert PackingCollator(9, multiple_of=4)([[A]])["input_ids"].shape == (1, 4)
    assert PackingCollator(9, multiple_of=3)([[A]])["labels"].tolist() == [[_, 13, 14, _, _, _]]


@pytest.mark.parametrize(("pad_to", "length"), [(0, 4), (4, 4), (5, 8), (128, 128)])
def test_batch_padded_to_a_power_of_two(pad_to, length):
    """A GPU compiles for few lengths; what is not padding stays the same."""
    plain = PackingCollator(9)([[A], [C]])
    batch = PackingCollator(9, pad_to=pad_to, few_lengths=True)([[A], [C]])
    longest = plain["input_ids"].shape[1]
    assert batch["input_ids"].shape == (2, length)
    assert torch.equal(batch["input_ids"][:, :longest], plain["input_ids"])
    assert torch.equal(batch["labels"][:, :longest], plain["labels"])
    assert (batch["labels"][:, longest:] == _).all()
    assert batch["num_supervised"] == plain["num_supervised"]


@pytest.mark.parametrize(
    ("on_gpu", "packing", "lengths"),
    [(True, True, {512}), (True, False, {128, 256, 512}), (False, False, set(range(32, 513, 32)))],
    ids=["gpu packed", "gpu unpacked", "cpu"],
)
def test_rows_have_few_lengths(on_gpu, packing, lengths, tmp_path, monkeypatch):
    monkeypatch.setattr(FunctionCallingDataModule, "_on_gpu", on_gpu)
    source = Source("data/quickstart/train.jsonl", limit=60)
    data = FunctionCallingDataModule(
        "tests/models/tiny_gemma2", [source], packing=packing, max_length=512, cache_dir=str(tmp_path)
    )
    data.prepare_data()
    data.setup("fit")
    collate, documents = data._collator(), data.prepared["train"].documents
    found = {collate([[document]])["input_ids"].shape[1] for document in documents}
    assert found <= lengths
    assert packing or len(found) > 1


def test_empty_batch_is_one_row_without_labels():
    batch = PackingCollator(9)([])
    assert batch["input_ids"].tolist() == [[9]]
    assert batch["position_ids"].tolist() == [[0]]
    assert batch["labels"].tolist() == [[_]]
    assert batch["supervised_index"].tolist() == []
    assert (batch["num_supervised"], batch["num_tokens"], batch["ids"]) == (0, 0, [[]])
    assert batch["documents"] == [(0, 0, 1)]


@settings(deadline=None)
@given(st.lists(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), max_size=3), min_size=1, max_size=3))
def test_every_supervised_token_is_a_label_once(packs_of_flags):
    token, expected, packs = 100, [], []
    for masks in packs_of_flags:
        packs.append([])
        for mask in masks:
            ids = list(range(token, token + len(mask)))  # no token comes twice
            token += len(mask)
            expected += [one for one, flag in zip(ids[1:], mask[1:], strict=True) if flag]
            spans = [edge for nth, flag in enumerate(mask) if flag for edge in (nth, nth + 1)]
            packs[-1].append(document("", ids, *spans))
    batch = PackingCollator(PAD)(packs)
    labels, input_ids = batch["labels"], batch["input_ids"]
    assert sorted(labels[labels != _].tolist()) == expected
    assert sum(labels[labels != _].tolist()) == sum(expected)
    assert labels.flatten()[batch["supervised_index"]].tolist() == labels[labels != _].tolist()
    assert batch["num_supervised"] == len(expected)
    for row, position in (labels != _).nonzero().tolist():
        assert labels[row, position] == input_ids[row, position + 1]
    borders = {(row, start) for row, start, end in batch["documents"]}
    assert borders == {tuple(place) for place in (batch["position_ids"] == 0).nonzero().tolist()}
