"""Near-copies are found, whichever way they differ, and stay on one side."""

import random

import pytest

from fc_lightning.data.splitting import hold_out, near_duplicates

WORDS = ["".join(random.Random(n).choices("aeioubdfgklmnprst", k=2 + n % 8)) for n in range(3000)]


def question(rng):
    """One of very many; two of them share hardly a word."""
    return " ".join(rng.sample(WORDS, rng.randrange(12, 40))) + "?"


def changed(text, rng):
    """The question with a small change."""
    words = text.split()
    place = rng.randrange(len(words))
    return rng.choice(
        [
            text.upper(),
            text.replace(" ", "  ").replace("?", "!!"),
            f"Please: {text}",
            " ".join([*words[:place], *words[place + 1 :]]),
            " ".join([*words[:place], "12345", *words[place + 1 :]]),
        ]
    )


@pytest.mark.parametrize("seed", range(3))
def test_near_duplicates_are_one_group_and_others_are_not(seed):
    rng = random.Random(seed)
    originals = [question(rng) for _ in range(400)]
    pairs = [(number, changed(text, rng)) for number, text in enumerate(originals)]
    mixed = [*enumerate(originals), *pairs]
    rng.shuffle(mixed)
    groups = near_duplicates([text for _, text in mixed])
    of_original = {}
    for (number, _), group in zip(mixed, groups, strict=True):
        of_original.setdefault(number, set()).add(group)
    assert sum(len(found) > 1 for found in of_original.values()) <= 2
    assert len(set(groups)) >= 400 - 2


def jaccard(first, second):
    first, second = ({text[n : n + 5] for n in range(len(text) - 4)} for text in (first, second))
    return len(first & second) / len(first | second)


def test_groups_agree_with_the_similarity_of_each_pair():
    rng = random.Random(5)
    base = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=200))
    texts = []
    for cut in range(0, 200, 5):  # the first `cut` characters are the base's, the others are not
        texts.append(base[:cut] + "".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=200 - cut)))
    groups = near_duplicates([base, *texts])
    for text, group in zip(texts, groups[1:], strict=True):
        similarity = jaccard(base, text)
        if similarity > 0.75:
            assert group == groups[0]
        if similarity < 0.4:
            assert group != groups[0]


def test_a_share_is_held_out_whatever_the_order():
    rng = random.Random(0)
    questions = [question(rng) for _ in range(1500)]
    questions += [changed(text, rng) for text in questions[:500] for _ in range(3)]  # large groups and single ones
    sides = dict(zip(questions, hold_out(questions, 0.2)[0], strict=True))
    assert 0.16 < sum(sides.values()) / len(sides) < 0.24
    shuffled = random.Random(1).sample(questions, len(questions))
    assert dict(zip(shuffled, hold_out(shuffled, 0.2)[0], strict=True)) == sides
    assert not any(hold_out(questions[:50], 0.0)[0])
    assert hold_out([], 0.5) == ([], "")


def test_short_and_empty_questions():
    assert near_duplicates(["", "a", "", "b", "a"]) == [0, 1, 0, 3, 1]
    assert near_duplicates([]) == []
