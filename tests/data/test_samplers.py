"""How an epoch is dealt out: the same documents a step, however they are spread over rows, ranks and accumulation."""

import random
from collections import Counter

import pytest

from fc_lightning.data.samplers import MicroBatchSampler, draw_by_weight, plan_generation, shard_batches

LENGTHS = random.Random(0).choices(range(1, 61), k=101)
CAPACITY = 100
packing = pytest.mark.parametrize("capacity", [CAPACITY, None], ids=["packed", "a row a document"])


def samplers(ranks, batch_size=1, capacity=CAPACITY, seed=3, **options):
    return [MicroBatchSampler(LENGTHS, capacity, batch_size, ranks, rank, seed, **options) for rank in range(ranks)]


def flat(batches):
    return [document for batch in batches for row in batch for document in row]


def set_epoch(some, epoch):
    for sampler in some:
        sampler.set_epoch(epoch)
    return some


@packing
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("seed", [None, 3])
def test_an_epoch_is_every_document_once(ranks, batch_size, capacity, seed):
    for epoch in (0, 1):
        some = set_epoch(samplers(ranks, batch_size, capacity, seed), epoch)
        shares = [list(sampler) for sampler in some]
        assert {len(share) for share in shares} == {len(some[0])}
        assert sorted(flat(batch for share in shares for batch in share)) == list(range(len(LENGTHS)))
        rows = [row for share in shares for batch in share for row in batch]
        assert all(len(batch) <= batch_size for share in shares for batch in share)
        assert all(sum(LENGTHS[document] for document in row) <= CAPACITY for row in rows if capacity)
        assert max(map(len, rows)) == 1 if capacity is None else max(map(len, rows)) > 1


def windows(ranks, batch_size, accumulation, capacity):
    """The documents of each optimizer step."""
    shares = [list(sampler) for sampler in samplers(ranks, batch_size, capacity)]
    starts = range(0, len(shares[0]), accumulation)
    return [sorted(flat(b for share in shares for b in share[start : start + accumulation])) for start in starts]


@packing
def test_a_step_holds_the_same_documents_however_it_is_split(capacity):
    expected = windows(1, 1, 6, capacity)
    assert len(expected) > 4
    for ranks, batch_size in ((1, 2), (1, 3), (1, 6), (2, 1), (2, 3), (3, 1), (3, 2), (6, 1)):
        assert windows(ranks, batch_size, 6 // ranks // batch_size, capacity) == expected


@packing
def test_epochs_differ_and_seeds_repeat(capacity):
    def epoch(number, seed=3):
        return list(set_epoch(samplers(1, 2, capacity, seed), number)[0])

    epochs = [epoch(number) for number in range(4)]
    assert len({str(batches) for batches in epochs}) == 4
    assert len({len(batches) for batches in epochs}) == 1
    assert epoch(2) == epochs[2]
    assert epoch(2, seed=4) != epochs[2]
    # Without a seed it is the order of the documents, every time.
    assert epoch(0, None) == epoch(1, None)
    assert capacity or flat(epoch(0, None)) == list(range(len(LENGTHS)))


def test_dealing_fills_up_with_empty_batches():
    assert [shard_batches("abcde", 3, rank) for rank in range(3)] == [["a", "d"], ["b", "e"], ["c", []]]
    assert [shard_batches("a", 3, rank) for rank in range(3)] == [["a"], [[]], [[]]]
    assert shard_batches("abcd", 2, 1) == ["b", "d"]
    assert shard_batches("", 2, 0) == []


@pytest.mark.parametrize(("tokens", "prompts"), [(120, 100), (10_000, 4), (200, 3), (1, 5)])
def test_generation_batches_keep_the_limits(tokens, prompts):
    some = [[number] * length for number, length in enumerate(LENGTHS)]
    batches = plan_generation(some, tokens, prompts)
    assert sorted(prompt for batch in batches for prompt in batch) == list(range(len(LENGTHS)))
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        longest = max(LENGTHS[prompt] for prompt in batch)
        assert len(batch) == 1 or (len(batch) <= prompts and longest * len(batch) <= tokens)
        # It is full: one more would break a limit. And nothing longer follows.
        if following:
            assert len(batch) == prompts or longest * (len(batch) + 1) > tokens
            assert max(LENGTHS[prompt] for prompt in following) <= min(LENGTHS[prompt] for prompt in batch)
    assert plan_generation([], tokens, prompts) == []


def test_prompts_with_a_beginning_in_common_are_generated_together():
    tools = [[number] * 100 for number in range(10)]
    some = [[*tools[number % 10], number, *[1] * (number % 7)] for number in range(40)]
    batches = plan_generation(some, 100_000, 4)
    assert sorted(len({number % 10 for number in batch}) for batch in batches) == [1] * 10
    # A longer prompt in a family that comes later counts in full.
    family = [[*[7] * 90, 1], [*[7] * 90, 2, *[3] * 50]]
    batches = plan_generation([*family, [5] * 200], 300, 10)
    assert batches == [[2], [0, 1]]


def test_draws_keep_the_weights():
    sources = [0] * 7000 + [1] * 2500 + [2] * 500
    drawn = draw_by_weight(sources, [1.0, 1.0, 2.0], 0, epoch=0)
    shares = Counter(sources[document] for document in drawn)
    assert len(drawn) == pytest.approx(10_000, abs=3)
    assert [shares[nth] / 10_000 for nth in range(3)] == pytest.approx([0.25, 0.25, 0.5], abs=0.01)
    assert draw_by_weight(sources, [1, 1, 2], 0, 0) == drawn
    assert draw_by_weight(sources, [1, 1, 2], 1, 0) != drawn


def test_draws_go_through_a_source_before_they_repeat():
    sources = [0] * 70 + [1] * 25 + [2] * 5
    times = Counter()
    for epoch in range(12):
        drawn = Counter(draw_by_weight(sources, [1.0, 1.0, 2.0], 0, epoch))
        times += drawn
        assert [sum(drawn[d] for d in range(100) if sources[d] == nth) for nth in range(3)] == [25, 25, 50]
        for nth in range(3):
            counts = [times[document] for document, source in enumerate(sources) if source == nth]
            assert max(counts) - min(counts) <= 1
    # 25 of source 0 are drawn each epoch: after three epochs, each of its 70 at least once.
    assert min(times[document] for document in range(70)) == 12 * 25 // 70


@packing
def test_weighted_epochs_differ_and_are_as_long_as_the_first(capacity):
    """Lightning asks for the length once; batches after it are skipped, and missing ones end the epoch too early."""
    sources = [int(length > 30) for length in LENGTHS]  # what is drawn decides how many packs there are
    some = samplers(2, 1, capacity, sources=sources, weights=[3.0, 1.0])
    length = len(some[0])
    epochs = [[list(sampler) for sampler in set_epoch(some, epoch)] for epoch in range(12)]
    drawn = [sorted(flat(batch for share in shares for batch in share)) for shares in epochs]
    assert {tuple(map(len, shares)) for shares in epochs} == {(length, length)}
    long = [sum(sources[document] for document in documents) / len(documents) for documents in drawn]
    assert long == pytest.approx([0.25] * 12, abs=0.04)  # of about 100 documents, a few may not fit
    assert min(map(len, drawn)) >= 95
    assert len({str(documents) for documents in drawn}) == 12
    rows = [row for shares in epochs for share in shares for batch in share for row in batch]
    assert all(sum(LENGTHS[document] for document in row) <= CAPACITY for row in rows if capacity)
    again = samplers(2, 1, capacity, sources=sources, weights=[3.0, 1.0])
    assert [list(sampler) for sampler in set_epoch(again, 7)] == epochs[7]  # no epoch needs those before it
